// Hedged requests among instances that stall, fail and answer late, in an order drawn from a fixed seed.
import assert from "node:assert/strict";
import { seededRandom } from "../../../clients/loadgen/arrivals.ts";
import { manualClock } from "../../support/manual-clock.ts";
import { untilQuiet } from "../../support/waits.ts";
import { untilNoLegs } from "../support/deployment.ts";
import type { DecodeLeg, PrefillLeg } from "../support/fake-instance.ts";
import { hedgedFleet } from "../support/hedged-fleet.ts";

describe("requests among instances that stall at random", () => {
  for (const connector of ["p2p-zmq", "nixl"]) {
    it(`end once, with the bytes of one attempt, and leave nothing behind: ${connector}`, async () => {
      const random = seededRandom(3);
      let clock = manualClock();
      let left = false;
      /** Half of the attempts are answered at once, the others after their time, or never while requests run. */
      const later: { readonly atMs: number; readonly act: () => void }[] = [];
      const sometime = (act: () => void): void => {
        const dice = random();
        if (dice < 0.5) act();
        else later.push({ atMs: clock.nowMs() + (dice < 0.9 ? 4_000 * random() : Infinity), act });
      };
      const onPrefill = (leg: PrefillLeg): void =>
        sometime(() => (random() < 0.1 ? leg.fail("engine_failed") : leg.done({ ticket: "t" })));
      const onDecode = (leg: DecodeLeg): void => {
        void leg.abandoned.promise.then(() => leg.close());
        leg.endsWhenAbandoned = false;
        leg.accept();
        void leg.started.promise.then(() =>
          sometime(() => {
            if (left || leg.seen.includes("abandon")) return;
            if (random() < 0.1) return leg.fail("engine_failed");
            leg.events(`data: ${leg.reserve.legId}\n\n`);
            leg.end({}, `data: ${leg.reserve.legId}\n\n`);
          }),
        );
      };
      const three = [1, 2, 3];
      await using f = await hedgedFleet({
        connector,
        decode: three.map(() => onDecode),
        prefill: three.map(() => onPrefill),
        limits: { hedgeRatio: 1, retryLimit: 4, retryRatio: 4, firstTokenTimeoutMs: 60_000 },
        breaker: { failureLimit: 1_000, probeEveryMs: 60_000 },
      });
      const { tandem } = f;
      ({ clock } = f);
      let ended = 0;
      const results = Array.from({ length: 60 }, async () => {
        const { client, ending, gone } = tandem.start();
        if (random() < 0.1) later.push({ atMs: clock.nowMs() + 3_000 * random(), act: () => gone.abort() });
        const outcome = await ending.then(
          () => "completed",
          (error: { code: string }) => error.code,
        );
        ended += 1;
        if (outcome === "completed") assert.match(client.text, /^data: (\w+)\n\ndata: \1\n\n$/);
        else assert.equal(client.started, 0, outcome);
        return outcome;
      });
      const pass = async (): Promise<void> => {
        await untilQuiet();
        clock.advance(250);
        for (const one of later.splice(0)) {
          if (one.atMs <= clock.nowMs()) one.act();
          else later.push(one);
        }
      };
      while (ended < results.length) await pass();
      const outcomes = await Promise.all(results);
      assert.ok(outcomes.filter((outcome) => outcome === "completed").length > 40, outcomes.join());
      left = true;
      for (const { act } of later.splice(0)) act();
      while (tandem.relay.legs > 0) await pass();
      await untilNoLegs(tandem);
      for (const { legs } of f.decodes)
        for (const { seen } of legs.all)
          assert.ok(/^reserve(,start)?(,abandon)?(,cancel)?$/.test(seen.join()) && seen.length > 1, seen.join());
      const text = await tandem.metrics.text();
      for (const outcome of ["won", "lost"])
        assert.match(text, new RegExp(`tandem_hedges_total\\{outcome="${outcome}"\\} \\d`));
    });
  }
});
