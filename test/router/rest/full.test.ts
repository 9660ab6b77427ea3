// A router that can't take a request now: a full queue, too much body memory, no instances.
import assert from "node:assert/strict";
import { eventually } from "../../support/waits.ts";
import { untilGone } from "./support/relay.ts";
import { errorOf, startRest, untilNoBodyIsHeld, type Rest, type RestOptions } from "./support/rest.ts";

const COMPLETIONS = "/v1/completions";
const BODY = { prompt: "hello" };

/** A router whose only decode slot is taken by a request with this body, until `leave` is called. */
async function startFull(o: RestOptions, body = BODY): Promise<Rest & { leave(): Promise<void> }> {
  const rest = await startRest({ ...o, script: untilGone });
  rest.pool.set([
    { id: "p1", role: "prefill" },
    { id: "d1", role: "decode", slots: 1 },
  ]);
  const client = new AbortController();
  const first = rest.post(COMPLETIONS, body, { signal: client.signal }).catch(() => {});
  await eventually("the first request runs", () => rest.relay.runs.length === 1);
  const leave = async (): Promise<void> => {
    client.abort();
    await first;
  };
  return { ...rest, leave, [Symbol.asyncDispose]: () => leave().then(() => rest[Symbol.asyncDispose]()) };
}

describe("a router without a free slot", () => {
  it("refuses with 429 what the queue doesn't hold", async () => {
    await using rest = await startFull({ queueLimit: 0 });
    const response = await rest.post(COMPLETIONS, BODY);
    assert.equal(response.status, 429);
    assert.equal(response.headers.get("retry-after"), "1");
    assert.equal((await errorOf(response)).type, "RateLimitError");
    assert.equal(rest.receipts.list(2).length, 2, "a refused request has a receipt too");
    assert.match(await rest.metrics.text(), /^tandem_refusals_total\{because="queue_full"\} 1$/m);
  });

  it("refuses with 503 after the queue's timeout, and says so", async () => {
    await using rest = await startFull({ queueTimeoutMs: 30 });
    const response = await rest.post(COMPLETIONS, BODY);
    assert.equal(response.status, 503);
    assert.match((await errorOf(response)).message, /30 ms in the queue/);
  });

  it("refuses with 429 a body that doesn't fit beside all others, and holds none after all have ended", async () => {
    const large = { prompt: "x".repeat(80_000) };
    await using rest = await startFull({ bodyTotalBytes: 100_000 }, large);
    const response = await rest.post(COMPLETIONS, large);
    assert.equal(response.status, 429);
    assert.equal(response.headers.get("retry-after"), "1");
    assert.match(await rest.metrics.text(), /^tandem_refusals_total\{because="body_memory"\} 1$/m);
    await rest.leave();
    await untilNoBodyIsHeld(rest, 100_000);
  });
});

describe("a router without instances that serve", () => {
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
