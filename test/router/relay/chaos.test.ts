// Many requests at once against instances that do anything at any time, in an order drawn from a fixed seed. Where the
// explorer proves the protocol, this looks at what drives it: every request ends once, every leg is settled, and the
// counts come back to nothing.
import assert from "node:assert/strict";
import { seededRandom } from "../../../clients/loadgen/arrivals.ts";
import { ServiceError, type FailureCode } from "../../../services/common/errors.ts";
import { deploy, untilNoLegs } from "../support/deployment.ts";
import { startDecode, startPrefill } from "../support/fake-instance.ts";
import type { DecodeLeg, PrefillLeg } from "../support/fake-instance.ts";

const REQUESTS = 150;

const PREFILL_FAILURES: FailureCode[] = [
  "instance_busy",
  "kv_transfer_failed",
  "engine_refused",
  "engine_failed",
  "instance_unavailable",
];
const DECODE_FAILURES: FailureCode[] = [
  "instance_busy",
  "instance_unavailable",
  "kv_transfer_failed",
  "engine_failed",
  "reservation_expired",
];

describe("a relay among unreliable instances", () => {
  for (const connector of ["p2p-zmq", "nixl"]) {
    it(`ends every request once and leaves nothing behind: ${connector}`, async () => {
      const random = seededRandom(7);
      const one = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)]!;
      const soon = (act: () => void): void => void (random() < 0.5 ? setImmediate(act) : act());

      const onPrefill = (leg: PrefillLeg): void =>
        soon(() => (random() < 0.2 ? leg.fail(one(PREFILL_FAILURES)) : leg.done({ ticket: "t" })));
      const onDecode = (leg: DecodeLeg): void => {
        void leg.abandoned.promise.then(() => soon(() => leg.close()));
        soon(() => {
          if (random() < 0.2) return leg.fail(one(DECODE_FAILURES));
          leg.accept();
          // A reservation may expire before its start.
          if (random() < 0.05) return soon(() => leg.fail("reservation_expired"));
          void leg.started.promise.then(() => {
            if (random() < 0.1) return leg.fail(one(["kv_transfer_failed", "engine_failed"]));
            leg.events("data: 1\n\n");
            soon(() => {
              if (random() < 0.1) return random() < 0.5 ? leg.fail("engine_failed") : leg.close();
              leg.end({}, "data: 2\n\n");
            });
          });
        });
      };
      await using p1 = await startPrefill({ instanceId: "p1", connector }, onPrefill);
      await using p2 = await startPrefill({ instanceId: "p2", connector }, onPrefill);
      await using d1 = await startDecode({ instanceId: "d1", connector }, onDecode);
      await using d2 = await startDecode({ instanceId: "d2", connector }, onDecode);
      await using tandem = await deploy([p1, p2, d1, d2], { limits: { retryLimit: 2 }, queueTimeoutMs: 200 });

      const outcomes = new Map<string, number>();
      const results = await Promise.all(
        Array.from({ length: REQUESTS }, async () => {
          const { client, gone, ending } = tandem.start();
          if (random() < 0.2) soon(() => setImmediate(() => gone.abort()));
          let outcome = "completed";
          try {
            await ending;
            assert.equal(client.text, "data: 1\n\ndata: 2\n\n");
          } catch (error) {
            assert.ok(error instanceof ServiceError, String(error));
            outcome = error.code;
          }
          outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
          const written = client.chunks.length;
          return () => assert.equal(client.chunks.length, written, "a write after the end");
        }),
      );
      await untilNoLegs(tandem);
      assert.equal(tandem.relay.legs, 0);
      for (const stillSo of results) stillSo();
      assert.ok((outcomes.get("completed") ?? 0) > REQUESTS / 4, JSON.stringify([...outcomes]));
      assert.equal(outcomes.get("internal"), undefined, JSON.stringify([...outcomes]));

      // Every reservation that was accepted was started or abandoned, and none was started after that. No call was reset.
      for (const { seen } of [...d1.legs.all, ...d2.legs.all]) {
        assert.ok(
          ["reserve", "reserve,start", "reserve,abandon", "reserve,start,abandon"].includes(seen.join()),
          seen.join(),
        );
      }
    });
  }
});
