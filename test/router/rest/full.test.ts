// A router that can't take a request now: a full queue, too much body memory, no instances.
import assert from "node:assert/strict";
import { eventually } from "../../support/waits.ts";
import { untilGone } from "./support/relay.ts";
import { errorOf, startRest } from "./support/rest.ts";

const COMPLETIONS = "/v1/completions";
const BODY = { prompt: "hello" };

describe("a router without room", () => {
  it("refuses with 429 what the queue doesn't hold", async () => {
    await using rest = await startRest({ script: untilGone, queueLimit: 0 });
    rest.pool.set([
      { id: "p1", role: "prefill" },
      { id: "d1", role: "decode", slots: 1 },
    ]);
    const client = new AbortController();
    const first = rest.post(COMPLETIONS, BODY, { signal: client.signal }).catch(() => {});
    await eventually("the first runs", () => rest.relay.runs.length === 1);
    const response = await rest.post(COMPLETIONS, BODY);
    assert.equal(response.status, 429);
    assert.equal(response.headers.get("retry-after"), "1");
    assert.equal((await errorOf(response)).type, "RateLimitError");
    assert.equal(rest.receipts.list(1)[0] === undefined, false);
    assert.match(await rest.metrics.text(), /^tandem_refusals_total\{because="queue_full"\} 1$/m);
    client.abort();
    await first;
  });

  it("refuses with 503 after the queue's timeout, and says so", async () => {
    await using rest = await startRest({ script: untilGone, queueTimeoutMs: 30 });
    rest.pool.set([
      { id: "p1", role: "prefill" },
      { id: "d1", role: "decode", slots: 1 },
    ]);
    const client = new AbortController();
    const first = rest.post(COMPLETIONS, BODY, { signal: client.signal }).catch(() => {});
    await eventually("the first runs", () => rest.relay.runs.length === 1);
    const response = await rest.post(COMPLETIONS, BODY);
    assert.equal(response.status, 503);
    assert.match((await errorOf(response)).message, /30 ms in the queue/);
    client.abort();
    await first;
  });

  it("refuses with 429 the body that is too much with all others, and holds none when all have ended", async () => {
    await using rest = await startRest({ script: untilGone, bodyTotalBytes: 100_000 });
    const client = new AbortController();
    const large = { prompt: "x".repeat(80_000) };
    const first = rest.post(COMPLETIONS, large, { signal: client.signal }).catch(() => {});
    await eventually("the first runs", () => rest.relay.runs.length === 1);
    const response = await rest.post(COMPLETIONS, large);
    assert.equal(response.status, 429);
    assert.equal(response.headers.get("retry-after"), "1");
    assert.match(await rest.metrics.text(), /^tandem_refusals_total\{because="body_memory"\} 1$/m);
    client.abort();
    await first;
    await eventually("nothing is held", () => rest.bodyBudget.heldBytes === 0);
  });

  it("says with 503 which side is missing, and names no address", async () => {
    await using rest = await startRest();
    rest.pool.set([
      { id: "p1", role: "prefill", draining: "10.1.2.3:3101 broke" },
      { id: "d1", role: "decode" },
    ]);
    const response = await rest.post(COMPLETIONS, BODY);
    assert.equal(response.status, 503);
    assert.equal(
      (await errorOf(response)).message,
      "The model `tiny` can't be served: its only prefill instance is out (draining). Try again in a second.",
    );
    rest.pool.set([]);
    assert.match((await errorOf(await rest.post(COMPLETIONS, BODY))).message, /no instance has registered/);
  });
});
