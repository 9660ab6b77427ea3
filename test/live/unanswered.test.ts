// A deployment as shipped, in processes of its own, with an engine that accepts requests and answers none: the first
// clients are hedged, later ones are sent elsewhere. Prints the times.
import assert from "node:assert/strict";
import { availableParallelism, loadavg } from "node:os";
import { engineUnder, failEngine, stateOf } from "../../clients/chaos/engine.ts";
import { routerClient } from "../../clients/client/rpc.ts";
import { skip } from "../support/skip.ts";
import { startTandem, type Tandem } from "../support/tandem.ts";
import { eventually } from "../support/waits.ts";

const CLIENTS = 8;
/** From the request to the first byte. */
const FIRST_BYTE_MS = 3_000;
/** With more processes than this waiting for each core, times say nothing. */
const BUSY_LOAD = 2;

describe("an engine that accepts requests and answers none, as shipped", function () {
  this.timeout(120_000);

  for (const role of ["decode", "prefill"] as const) {
    it(`costs nobody an answer: ${role}`, async function () {
      if (process.platform !== "linux") skip(this, "finds engines in /proc");
      await using tandem = await startTandem(["--prefill", "2", "--decode", "2", "--engine.flag=--inject"]);
      const { instances } = await routerClient(tandem.url, tandem.token).listInstances({});
      const engines = instances
        .filter(({ info }) => info!.role === (role === "prefill" ? 1 : 2))
        .map(({ info }) => engineUnder(info!)());
      const [mute] = engines;
      await failEngine(mute!, { kind: "hang" });

      const first = await eight(tandem);
      const next = await eight(tandem);
      const load = loadavg()[0]! / availableParallelism();
      const text = `first ${figures(first)}; next ${figures(next)}; load ${load.toFixed(1)} a core`;
      console.log(`    ${role}: ${text}`);
      for (const { ok } of [...first, ...next]) assert.ok(ok, text);
      assert.ok(
        first.some(({ degraded }) => degraded.includes("hedge:")),
        text,
      );
      assert.ok(!next.some(({ degraded }) => /hedge|retry/.test(degraded)), text);
      const slowestMs = Math.max(...first.map(({ firstMs }) => firstMs));
      if (load < BUSY_LOAD) assert.ok(slowestMs <= FIRST_BYTE_MS, text);

      // The engine is restarted, and no KV of the attempts that lost is left anywhere.
      const all = instances.filter(({ info }) => info!.role === 2).map(({ info }) => info!.pid);
      for (const pid of all)
        await eventually(
          "no KV is held",
          async () => (await stateOf(engineUnder({ pid })()))?.kv_held.length === 0,
          60_000,
        );
    });
  }
});

interface Answer {
  readonly ok: boolean;
  readonly firstMs: number;
  readonly degraded: string;
}

function eight({ url }: Tandem): Promise<Answer[]> {
  return Promise.all(
    Array.from({ length: CLIENTS }, async () => {
      const sentMs = performance.now();
      const answer = await fetch(`${url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ model: "tandem-sim", prompt: "The quick brown fox", max_tokens: 5, stream: true }),
      });
      // Headers come with the first byte.
      const firstMs = performance.now() - sentMs;
      const text = await answer.text();
      const ok = answer.status === 200 && text.endsWith("data: [DONE]\n\n") && !text.includes('"error"');
      return { ok, firstMs, degraded: answer.headers.get("x-tandem-degraded") ?? "" };
    }),
  );
}

function figures(answers: readonly Answer[]): string {
  const ok = answers.filter((answer) => answer.ok).length;
  const hedged = answers.filter(({ degraded }) => degraded.includes("hedge:")).length;
  return `${ok} of ${answers.length} ok, ${hedged} hedged, slowest ${Math.round(Math.max(...answers.map(({ firstMs }) => firstMs)))} ms`;
}
