// Decode alone makes up for prefill that is gone, and not for prefill that is still to come.
import assert from "node:assert/strict";
import { State } from "#gen/tandem/instance/v1/instance_pb.js";
import { Picker } from "../../../services/router/placement/policies.ts";
import { createPool, type Pool } from "../../../services/router/pool/pool.ts";
import { createPlacer, Exclusions } from "../../../services/router/placement/placement.ts";
import { silentLog } from "../../support/log-sink.ts";
import { manualClock, type ManualClock } from "../../support/manual-clock.ts";
import { startDecode, startPrefill } from "../support/fake-instance.ts";
import { untilStanding } from "../support/pool-waits.ts";

const NIXL = { connector: "nixl" };

/** Shorter than an instance may be silent, for the clock stands still for heartbeats. */
function start(clock: ManualClock): Pool {
  return createPool({ log: silentLog, clock, unpaired: true, firstPrefillMs: 1_500 });
}

/** What a request gets now. */
function served(pool: Pool): string {
  const lack = pool.view.models.get("tiny")?.lack(false);
  try {
    const policies = { prefill: new Picker(() => "least-load"), decode: new Picker(() => "least-load") };
    const place = createPlacer(pool, policies).place({ model: "tiny", tokens: 10, strict: false }, new Exclusions());
    assert.equal(lack, undefined, "placed in spite of the lack");
    return place.fallback ?? "pair";
  } catch (error) {
    assert.match(lack ?? "", /no prefill instance|only prefill instance/);
    return (error as { code?: string }).code ?? String(error);
  }
}

describe("decode before its first prefill instance", () => {
  it("waits for it, and serves unpaired once it has been there and is out", async () => {
    const clock = manualClock();
    await using decode = await startDecode(NIXL);
    await using prefill = await startPrefill(NIXL);
    await using pool = start(clock);
    pool.update([decode.info]);
    await untilStanding(pool, "d1", "serves");
    assert.equal(served(pool), "no_instance");
    pool.update([decode.info, prefill.info]);
    await untilStanding(pool, "p1", "serves");
    assert.equal(served(pool), "pair");
    prefill.load({ state: State.DRAINING });
    await untilStanding(pool, "p1", "draining");
    assert.equal(served(pool), "unpaired");
    pool.update([decode.info]);
    assert.equal(served(pool), "unpaired");
  });

  it("serves unpaired when none came in time, and listeners learn of it", async () => {
    const clock = manualClock();
    await using decode = await startDecode(NIXL);
    await using pool = start(clock);
    pool.update([decode.info]);
    await untilStanding(pool, "d1", "serves");
    assert.equal(served(pool), "no_instance");
    const seen: string[] = [];
    pool.onChange(() => seen.push(pool.view.models.get("tiny")!.mayServeUnpaired ? "alone" : "waits"));
    clock.advance(1_400);
    assert.ok(!seen.includes("alone"));
    clock.advance(400);
    assert.ok(seen.includes("alone"));
    assert.equal(served(pool), "unpaired");
  });
});
