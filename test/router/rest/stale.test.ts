// While the registry is away: promises 6 and 10.
import assert from "node:assert/strict";
import { createMetrics } from "../../../services/common/metrics.ts";
import { staleness } from "../../../services/router/staleness.ts";
import { fakePool } from "./support/pool.ts";
import { errorOf, startRest } from "./support/rest.ts";

const COMPLETIONS = "/v1/completions";
const BODY = { model: "tiny", prompt: "hi" };

describe("a request while the registry is away", () => {
  it("is served by what was known before, and says so", async () => {
    let away = true;
    await using rest = await startRest({ stale: () => away });
    const response = await rest.post(COMPLETIONS, BODY);
    assert.deepEqual([response.status, response.headers.get("x-tandem-degraded")], [200, "stale-registry"]);
    away = false;
    assert.equal((await rest.post(COMPLETIONS, BODY)).headers.get("x-tandem-degraded"), null);
  });

  for (const stream of [false, true]) {
    it(`is refused where it is strict, ${stream ? "a stream" : "an answer in one piece"}`, async () => {
      let away = true;
      const refusing: boolean[] = [];
      await using rest = await startRest({ stale: (strict) => (refusing.push(strict), away) });
      const ask = (strict: string): Promise<Response> =>
        rest.post(COMPLETIONS, { ...BODY, stream }, { headers: { "x-tandem-strict": strict } });
      const response = await ask("true");
      assert.deepEqual(
        [response.status, response.headers.get("retry-after"), response.headers.get("x-tandem-degraded")],
        [503, "1", null],
      );
      const { message, type } = await errorOf(response);
      assert.match(message, /^The registry of instances doesn't answer, .* strict/);
      assert.equal(type, "ServiceUnavailableError");
      assert.equal(rest.relay.runs.length, 0);
      assert.deepEqual([rest.receipts.list(1)[0]!.outcome, rest.receipts.list(1)[0]!.fallbacks], ["refused", []]);
      assert.match(await rest.metrics.text(), /^tandem_refusals_total\{because="stale_registry"\} 1$/m);
      assert.equal((await ask("false")).status, 200);
      away = false;
      assert.equal((await ask("true")).status, 200);
      assert.deepEqual(refusing, [true, false, true], "only what is refused is no fallback that counts");
    });
  }

  it("is refused where the whole router is strict, unless it says otherwise", async () => {
    await using rest = await startRest({ strict: true, stale: () => true });
    assert.equal((await rest.post(COMPLETIONS, BODY)).status, 503);
    assert.equal((await rest.post(COMPLETIONS, BODY, { headers: { "x-tandem-strict": "false" } })).status, 200);
  });

  it("counts as a fallback only where it is served", async () => {
    const metrics = createMetrics();
    const stale = staleness(fakePool(), () => ({ address: "", up: false, downSinceUnixMs: 1, error: "gone" }), metrics);
    assert.deepEqual([stale(true), stale(false), stale()], [true, true, true]);
    assert.match(await metrics.text(), /^tandem_fallbacks_total\{reason="stale-registry"\} 2$/m);
  });
});
