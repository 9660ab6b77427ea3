import assert from "node:assert/strict";
import { createMetrics } from "../../services/common/metrics.ts";
import { TANDEM_COMMIT, TANDEM_VERSION } from "../../services/common/version.ts";

describe("metrics", () => {
  it("are printed as Prometheus reads them", async () => {
    const metrics = createMetrics();
    metrics.counter("tandem_requests_total", "Requests.", ["outcome"]).inc({ outcome: "ok" }, 2);
    metrics.histogram("tandem_ttft_seconds", "TTFT.", [0.1, 1]).observe(0.5);
    let depth = 7;
    metrics.gauge("tandem_queue", "Waiting.", [], (gauge) => gauge.set(depth));
    depth = 9;
    const text = await metrics.text();
    assert.match(text, /^tandem_requests_total\{outcome="ok"\} 2$/m);
    assert.match(text, /^tandem_ttft_seconds_bucket\{le="1"\} 1$/m);
    assert.match(text, /^tandem_queue 9$/m);
    assert.match(metrics.contentType, /^text\/plain/);
  });

  it("tally per token as a histogram does", async () => {
    const metrics = createMetrics();
    const buckets = [0.1, 0.5, 1];
    const tally = metrics.tally("tandem_x_seconds", "X.", buckets);
    const histogram = metrics.histogram("tandem_y_seconds", "X.", buckets);
    for (const value of [0, 0.1, 0.2, 0.7, 1, 5]) {
      tally.observe(value);
      histogram.observe(value);
    }
    const [x, y] = ["x", "y"].map(
      (name) => (text: string) =>
        text
          .split("\n")
          .filter((line) => line.includes(`tandem_${name}_`))
          .join("\n"),
    );
    const text = await metrics.text();
    assert.match(x!(text), /_bucket\{le="0.5"\} 3/);
    assert.equal(x!(text), y!(text).replaceAll("tandem_y_", "tandem_x_"));
  });

  it("belong to their owner: two sets in one process don't meet, and a name is one metric", async () => {
    const [a, b] = [createMetrics(), createMetrics()];
    a.counter("tandem_x_total", "X.").inc();
    a.counter("tandem_x_total", "X.").inc();
    b.counter("tandem_x_total", "X.");
    assert.match(await a.text(), /^tandem_x_total 2$/m);
    assert.match(await b.text(), /^tandem_x_total 0$/m);
  });

  it("say which build this is", async () => {
    const text = await createMetrics().text();
    assert.match(
      text,
      new RegExp(`^tandem_build_info\\{version="${TANDEM_VERSION}",commit="${TANDEM_COMMIT}"\\} 1$`, "m"),
    );
  });

  it("tell memory, processor time and start of the process", async () => {
    const metrics = createMetrics();
    await metrics.text();
    const text = await metrics.text();
    const value = (name: string): number => Number(new RegExp(`^${name} (.+)$`, "m").exec(text)?.[1]);
    assert.ok(value("process_resident_memory_bytes") > 1e7);
    // Counted once, not once more at each scrape.
    assert.ok(
      Math.abs(value("process_cpu_seconds_total") - process.cpuUsage().user / 1e6 - process.cpuUsage().system / 1e6) <
        1,
    );
    assert.ok(Math.abs(value("process_start_time_seconds") - Date.now() / 1000) < 3_600);
  });
});
