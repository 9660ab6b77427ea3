// What a registry says of an instance, against what the instance says itself.
import assert from "node:assert/strict";
import { State } from "#gen/tandem/instance/v1/instance_pb.js";
import { systemClock } from "../../../services/common/clock.ts";
import type { Objection } from "../../../services/discovery/registry.ts";
import { createPool, type Pool } from "../../../services/router/pool/pool.ts";
import { silentLog } from "../../support/log-sink.ts";
import { type FakeInstance, startDecode } from "../support/fake-instance.ts";
import { standingIn } from "../support/fleet.ts";
import { seenIn, untilPool, untilStanding } from "../support/pool-waits.ts";

async function poolOf(
  ...instances: FakeInstance[]
): Promise<AsyncDisposable & { readonly pool: Pool; objection(objections: Record<string, Objection["kind"]>): void }> {
  const pool = createPool({ log: silentLog, clock: systemClock });
  const entries = instances.map(({ info }) => info);
  pool.update(entries);
  for (const { instanceId } of entries) await untilStanding(pool, instanceId, "serves");
  const objection = (objections: Record<string, Objection["kind"]>): void =>
    pool.update(
      entries,
      new Map(Object.entries(objections).map(([id, kind]) => [id, { kind, reason: `It is ${kind} in the registry.` }])),
    );
  return { pool, objection, [Symbol.asyncDispose]: () => pool[Symbol.asyncDispose]() };
}

describe("an instance that its registry objects to", () => {
  it("gets no leg while others serve, and is back when the registry lists it as healthy", async () => {
    await using one = await startDecode({ instanceId: "d1" });
    await using two = await startDecode({ instanceId: "d2" });
    await using registered = await poolOf(one, two);
    const { pool } = registered;
    for (const kind of ["critical", "missing"] as const) {
      registered.objection({ d1: kind });
      assert.equal(standingIn(pool.view, "d1"), "unlisted");
      assert.match(seenIn(pool, "d1")!.standing.text, /in the registry/);
      assert.equal(standingIn(pool.view, "d2"), "serves");
      registered.objection({});
      assert.equal(standingIn(pool.view, "d1"), "serves");
    }
  });

  it("serves on beside others if its entry has only lapsed, and is forgotten once it is not heard either", async () => {
    await using one = await startDecode({ instanceId: "d1" });
    await using two = await startDecode({ instanceId: "d2" });
    await using registered = await poolOf(one, two);
    const { pool } = registered;
    registered.objection({ d1: "lapsed" });
    assert.equal(standingIn(pool.view, "d1"), "serves");
    await one[Symbol.asyncDispose]();
    await untilPool(pool, "it is gone", () => seenIn(pool, "d1") === undefined);
    registered.objection({ d1: "lapsed" });
    assert.equal(seenIn(pool, "d1"), undefined);
  });

  it("drains in maintenance mode, even as the last one", async () => {
    await using one = await startDecode({ instanceId: "d1" });
    await using registered = await poolOf(one);
    const { pool } = registered;
    registered.objection({ d1: "maintenance" });
    assert.equal(standingIn(pool.view, "d1"), "draining");
  });

  it("goes on serving if no other instance does, which is reported", async () => {
    await using one = await startDecode({ instanceId: "d1" });
    await using two = await startDecode({ instanceId: "d2" });
    await using registered = await poolOf(one, two);
    const { pool } = registered;
    assert.equal(pool.view.overruled, false);
    registered.objection({ d1: "critical", d2: "missing" });
    for (const id of ["d1", "d2"]) {
      const { standing } = seenIn(pool, id)!;
      assert.deepEqual([standing.kind, standing.kind === "serves" && standing.despite], ["serves", "unlisted"]);
      assert.match(standing.text, /too few others do/);
    }
    assert.equal(pool.view.overruled, true);
    // One of another model is no help, one of the same is.
    await using other = await startDecode({ instanceId: "d3", model: "other" });
    pool.update([one.info, other.info], new Map([["d1", { kind: "critical", reason: "x" }]]));
    await untilStanding(pool, "d3", "serves");
    assert.equal(standingIn(pool.view, "d1"), "serves");
  });

  it("is forgotten once it is missing and reports that it stops", async () => {
    await using one = await startDecode({ instanceId: "d1" });
    await using two = await startDecode({ instanceId: "d2" });
    await using registered = await poolOf(one, two);
    const { pool } = registered;
    registered.objection({ d1: "missing" });
    assert.equal(standingIn(pool.view, "d1"), "unlisted");
    one.load({ state: State.DRAINING });
    await untilPool(pool, "it is gone", () => seenIn(pool, "d1") === undefined);
    registered.objection({ d1: "missing" });
    assert.equal(seenIn(pool, "d1"), undefined);
  });
});
