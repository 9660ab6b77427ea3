import assert from "node:assert/strict";
import { loadConfig } from "../../../services/common/config.ts";
import { createMetrics } from "../../../services/common/metrics.ts";
import { routerConfig } from "../../../services/router/config.ts";
import { liveSettings } from "../../../services/router/registry/live-settings.ts";
import { logSink } from "../../support/log-sink.ts";

const SOURCE = "consul tandem/config/";

function start() {
  const config = loadConfig(routerConfig, { argv: ["--queue.limit", "8"], env: {} });
  const sink = logSink();
  const metrics = createMetrics();
  let changes = 0;
  const live = liveSettings(config.settings, { log: sink.log, metrics, onChange: () => (changes += 1) });
  return {
    config,
    live,
    sink,
    metrics,
    changes: () => changes,
    apply: (texts: Record<string, string>) => live.apply(new Map(Object.entries(texts)), SOURCE),
  };
}

describe("settings that change while the router runs", () => {
  it("reach their readers, are logged once, and are reset when they are deleted", async () => {
    const { config, sink, metrics, changes, apply } = start();
    const { queue, placement } = config;
    apply({});
    assert.equal(changes(), 0, "nothing changed");
    apply({ "queue.limit": "512", "prefill.policy": "round-robin" });
    assert.deepEqual([queue.current.limit, placement.current.prefill], [512, "round-robin"]);
    apply({ "queue.limit": "512" });
    assert.deepEqual([queue.current.limit, placement.current.prefill], [512, "least-load"]);
    apply({});
    assert.equal(queue.current.limit, 8);
    assert.equal(changes(), 3);
    assert.deepEqual(
      sink.events("settings changed").map(({ settings }) => settings),
      [
        [`prefill.policy = round-robin (${SOURCE}prefill.policy)`, `queue.limit = 512 requests (${SOURCE}queue.limit)`],
        ["prefill.policy = least-load (default)"],
        ["queue.limit = 8 requests (flag --queue.limit)"],
      ],
    );
    assert.match(await metrics.text(), /tandem_settings_changes_total\{outcome="taken"\} 3/);
  });

  it("are refused as a whole, with a log line and a metric, and the previous ones stay in force", async () => {
    const { config, live, sink, metrics, apply } = start();
    apply({ "queue.limit": "512" });
    apply({ "queue.limit": "16", "retry.limit": "-1", "connections.limit": "9" });
    assert.deepEqual([config.queue.current.limit, config.relay.current.retryLimit], [512, 2]);
    assert.match(live.refusal, /connections\.limit can't change while the process runs\. retry\.limit: .*too small/);
    assert.equal(sink.events("changed settings are refused; the previous ones stay in force").length, 1);
    assert.match(await metrics.text(), /tandem_settings_changes_total\{outcome="refused"\} 1/);
    apply({ "queue.limit": "16" });
    assert.deepEqual([config.queue.current.limit, live.refusal], [16, ""]);
  });

  it("are the policies, limits and time bounds that requests are held to", () => {
    const live = [...routerConfig.options.values()].filter((option) => option.live).map(({ key }) => key);
    for (const key of [
      "prefill.policy",
      "admission.limit",
      "queue.timeout_ms",
      "legs.limit",
      "stall_ms",
      "retry.limit",
    ])
      assert.ok(live.includes(key), key);
    for (const key of ["rest.listen", "token", "registry.kind", "strict", "fallback.unpaired", "connections.limit"])
      assert.ok(!live.includes(key), key);
  });
});
