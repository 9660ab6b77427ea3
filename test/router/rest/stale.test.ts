// While the registry is away: promises 6 and 10.
import assert from "node:assert/strict";
import { errorOf, startRest } from "./support/rest.ts";

const COMPLETIONS = "/v1/completions";
const BODY = { model: "tiny", prompt: "hi" };

describe("a request while the registry is away", () => {
  it("is served by the last known instances, and says so", async () => {
    let away = true;
    await using rest = await startRest({ registryIsAway: () => away });
    const response = await rest.post(COMPLETIONS, BODY);
    assert.deepEqual([response.status, response.headers.get("x-tandem-degraded")], [200, "stale-registry"]);
    away = false;
    assert.equal((await rest.post(COMPLETIONS, BODY)).headers.get("x-tandem-degraded"), null);
  });

  for (const stream of [false, true]) {
    it(`is refused if it is strict, ${stream ? "a stream" : "a non-streaming answer"}`, async () => {
      let away = true;
      await using rest = await startRest({ registryIsAway: () => away });
      const ask = (strict: string): Promise<Response> =>
        rest.post(COMPLETIONS, { ...BODY, stream }, { headers: { "x-tandem-strict": strict } });
      const response = await ask("true");
      assert.deepEqual(
        [response.status, response.headers.get("retry-after"), response.headers.get("x-tandem-degraded")],
        [503, "1", null],
      );
      const { message, type } = await errorOf(response);
      assert.match(message, /^The registry does not answer, .* strict/);
      assert.equal(type, "ServiceUnavailableError");
      assert.equal(rest.relay.runs.length, 0);
      assert.deepEqual([rest.receipts.list(1)[0]!.outcome, rest.receipts.list(1)[0]!.fallbacks], ["refused", []]);
      assert.match(await rest.metrics.text(), /^tandem_refusals_total\{because="stale_registry"\} 1$/m);
      assert.equal((await ask("false")).status, 200);
      away = false;
      assert.equal((await ask("true")).status, 200);
      // Only a request that is placed by old news counts as a fallback.
      assert.match(await rest.metrics.text(), /^tandem_fallbacks_total\{reason="stale-registry"\} 1$/m);
    });
  }

  it("is refused if the whole router is strict, unless the request says otherwise", async () => {
    await using rest = await startRest({ strict: true, registryIsAway: () => true });
    assert.equal((await rest.post(COMPLETIONS, BODY)).status, 503);
    assert.equal((await rest.post(COMPLETIONS, BODY, { headers: { "x-tandem-strict": "false" } })).status, 200);
  });

  it("is as stale if the registry reports the last instances dead, and they report that they serve", async () => {
    await using rest = await startRest();
    rest.pool.set([
      { id: "p1", role: "prefill" },
      { id: "d1", role: "decode", unlisted: true },
    ]);
    const response = await rest.post(COMPLETIONS, BODY);
    assert.deepEqual([response.status, response.headers.get("x-tandem-degraded")], [200, "stale-registry"]);
  });
});

describe("a request while most instances are silent together", () => {
  it("is served by them, strict or not, and says so, as readiness does", async () => {
    await using rest = await startRest();
    const readiness = async (): Promise<unknown> => (await fetch(`${rest.url}/readyz`)).json();
    rest.pool.set([
      { id: "p1", role: "prefill", suspect: true },
      { id: "d1", role: "decode", suspect: true },
    ]);
    for (const strict of ["false", "true"]) {
      const response = await rest.post(COMPLETIONS, BODY, { headers: { "x-tandem-strict": strict } });
      assert.deepEqual([response.status, response.headers.get("x-tandem-degraded")], [200, "stale-view"]);
    }
    assert.match(await rest.metrics.text(), /^tandem_fallbacks_total\{reason="stale-view"\} 2$/m);
    const self_doubt = "Most instances are silent together. The router takes none out for it.";
    assert.deepEqual(await readiness(), { status: "ready", self_doubt });
    rest.pool.set([
      { id: "p1", role: "prefill" },
      { id: "d1", role: "decode" },
    ]);
    assert.equal((await rest.post(COMPLETIONS, BODY)).headers.get("x-tandem-degraded"), null);
    assert.deepEqual(await readiness(), { status: "ready" });
  });
});
