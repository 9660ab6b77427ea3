// What a registry says of an instance, against what the instance says itself.
import assert from "node:assert/strict";
import { State } from "#gen/tandem/instance/v1/instance_pb.js";
import { systemClock } from "../../../services/common/clock.ts";
import { createMetrics } from "../../../services/common/metrics.ts";
import type { Doubt } from "../../../services/discovery/registry.ts";
import { createPool, type Pool } from "../../../services/router/pool/pool.ts";
import { staleness } from "../../../services/router/staleness.ts";
import { silentLog } from "../../support/log-sink.ts";
import { type FakeInstance, startDecode } from "../support/fake-instance.ts";
import { memberOf, untilCondition, untilPool } from "../support/pool-waits.ts";

async function poolOf(
  ...instances: FakeInstance[]
): Promise<Pool & { doubt(doubts: Record<string, Doubt["kind"]>): void }> {
  const pool = createPool({ log: silentLog, clock: systemClock });
  const entries = instances.map(({ info }) => info);
  pool.update(entries);
  for (const { instanceId } of entries) await untilCondition(pool, instanceId, "serving");
  const doubt = (doubts: Record<string, Doubt["kind"]>): void =>
    pool.update(
      entries,
      new Map(Object.entries(doubts).map(([id, kind]) => [id, { kind, reason: `It is ${kind} in the registry.` }])),
    );
  return Object.assign(Object.create(pool) as Pool, {
    doubt,
    [Symbol.asyncDispose]: () => pool[Symbol.asyncDispose](),
  });
}

describe("an instance that its registry doubts", () => {
  it("gets no leg while others serve, and is back with the next good word", async () => {
    await using one = await startDecode({ instanceId: "d1" });
    await using two = await startDecode({ instanceId: "d2" });
    await using pool = await poolOf(one, two);
    for (const kind of ["critical", "missing"] as const) {
      pool.doubt({ d1: kind });
      assert.deepEqual([memberOf(pool, "d1")!.condition, memberOf(pool, "d1")!.eligible], ["doubted", false]);
      assert.match(memberOf(pool, "d1")!.reason, /in the registry/);
      assert.equal(memberOf(pool, "d2")!.eligible, true);
      pool.doubt({});
      assert.equal(memberOf(pool, "d1")!.eligible, true);
    }
  });

  it("drains in maintenance mode, even as the last one", async () => {
    await using one = await startDecode({ instanceId: "d1" });
    await using pool = await poolOf(one);
    pool.doubt({ d1: "maintenance" });
    assert.deepEqual([memberOf(pool, "d1")!.condition, memberOf(pool, "d1")!.eligible], ["draining", false]);
  });

  it("serves on where no other does, and that is not hidden", async () => {
    await using one = await startDecode({ instanceId: "d1" });
    await using two = await startDecode({ instanceId: "d2" });
    await using pool = await poolOf(one, two);
    const metrics = createMetrics();
    const stale = staleness(pool, () => undefined, metrics);
    assert.equal(stale(), false);
    pool.doubt({ d1: "critical", d2: "missing" });
    for (const id of ["d1", "d2"])
      assert.deepEqual([memberOf(pool, id)!.eligible, /no other does/.test(memberOf(pool, id)!.reason)], [true, true]);
    assert.equal(stale(), true);
    assert.match(await metrics.text(), /tandem_fallbacks_total\{reason="stale-registry"\} 1/);
    // One of another model is no help, one of the same is.
    await using other = await startDecode({ instanceId: "d3", model: "other" });
    pool.update([one.info, other.info], new Map([["d1", { kind: "critical", reason: "x" }]]));
    await untilCondition(pool, "d3", "serving");
    assert.equal(memberOf(pool, "d1")!.eligible, true);
  });

  it("is forgotten once it is missing and says itself that it ends", async () => {
    await using one = await startDecode({ instanceId: "d1" });
    await using two = await startDecode({ instanceId: "d2" });
    await using pool = await poolOf(one, two);
    pool.doubt({ d1: "missing" });
    assert.equal(memberOf(pool, "d1")!.condition, "doubted");
    one.load({ state: State.DRAINING });
    await untilPool(pool, "it is gone", () => memberOf(pool, "d1") === undefined);
    pool.doubt({ d1: "missing" });
    assert.equal(memberOf(pool, "d1"), undefined);
  });

  it("is stale for as long as the registry is away", async () => {
    await using one = await startDecode({ instanceId: "d1" });
    await using pool = await poolOf(one);
    let up = false;
    const stale = staleness(pool, () => ({ address: "", up, downSinceUnixMs: 0, error: "" }), createMetrics());
    assert.equal(stale(), true);
    up = true;
    assert.equal(stale(), false);
  });
});
