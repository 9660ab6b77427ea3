import assert from "node:assert/strict";
import { State } from "#gen/tandem/instance/v1/instance_pb.js";
import { systemClock } from "../../../services/common/clock.ts";
import { createPool } from "../../../services/router/pool/pool.ts";
import type { FleetView, Seen } from "../../../services/router/pool/fleet.ts";
import { RestartLeases } from "../../../services/router/pool/restart-leases.ts";
import type { Reason } from "../../../services/router/pool/standing.ts";
import { silentLog } from "../../support/log-sink.ts";
import { eventually } from "../../support/waits.ts";
import { startDecode } from "../support/fake-instance.ts";
import { untilStanding } from "../support/pool-waits.ts";

/** What each decode instance is: `wants` a restart, `serves`, or why it is out; `wants:REASON` is both. */
type Sides = Readonly<Record<string, string>>;

function viewOf(decode: Sides): Pick<FleetView, "models"> {
  const seen = Object.entries(decode).map(([instanceId, what]) => {
    const [first, reason = first === "wants" ? "serves" : first] = what.split(":");
    const standing = reason === "serves" ? { kind: "serves" } : { kind: "out", reason: reason as Reason };
    return { instance: { instanceId, load: { restartWanted: first === "wants" ? "debt" : "" } }, standing };
  });
  const model = { prefill: [], decode: seen as unknown as readonly Seen[] };
  return { models: new Map([["m", model]]) } as unknown as FleetView;
}

const granted = (leases: RestartLeases, decode: Sides, nowMs: number): string =>
  [...leases.granted(viewOf(decode), nowMs)].join();

describe("a restart of an engine that serves", () => {
  for (const [what, decode, whom] of [
    ["no instance, when none asks", { a: "serves", b: "serves" }, ""],
    ["the one that asks", { a: "serves", b: "wants", c: "serves" }, "b"],
    ["the first of several by its id", { c: "wants", b: "wants", a: "serves" }, "b"],
    ["no instance, if it is the only one", { a: "wants" }, ""],
    ["no instance, if it is the last that serves", { a: "wants", b: "unreachable" }, ""],
    ["no instance, while another one restarts", { a: "wants", b: "serves", c: "starting" }, ""],
    ["no instance, while another one ends its legs to be restarted", { a: "wants", b: "serves", c: "draining" }, ""],
    ["no instance, while another one is not proven yet", { a: "wants", b: "serves", c: "unproven" }, ""],
    ["the one that asks, beside one that would never serve", { a: "wants", b: "serves", c: "unmatched" }, "a"],
    ["one that is out itself: it takes nothing away", { a: "wants:failing", b: "serves" }, "a"],
    ["no instance, when all are out", { a: "wants:failing", b: "failing" }, ""],
  ] as const) {
    it(`is granted to ${what}`, () => assert.equal(granted(new RestartLeases(), decode, 0), whom));
  }

  it("is taken back when another instance goes out before it began, and granted again later", () => {
    const leases = new RestartLeases();
    const both = { a: "wants", b: "serves", c: "serves" };
    assert.equal(granted(leases, both, 0), "a");
    assert.equal(granted(leases, { ...both, b: "silent" }, 250), "");
    assert.equal(granted(leases, both, 500), "", "the instance may not know yet");
    assert.equal(granted(leases, both, 3_250), "a");
  });

  it("is granted to the next one only after the first one serves again", () => {
    const leases = new RestartLeases();
    assert.equal(granted(leases, { a: "wants", b: "wants", c: "serves" }, 0), "a");
    for (const [a, atMs] of [
      ["draining", 1_000],
      ["starting", 5_000],
      ["unproven", 60_000],
    ] as const)
      assert.equal(granted(leases, { a, b: "wants", c: "serves" }, atMs), "");
    assert.equal(granted(leases, { a: "serves", b: "wants", c: "serves" }, 61_000), "b");
  });

  it("stays granted while a lower id asks as well, and is chosen anew if it isn't used", () => {
    const leases = new RestartLeases();
    assert.equal(granted(leases, { a: "serves", b: "wants", c: "serves" }, 0), "b");
    assert.equal(granted(leases, { a: "wants", b: "wants", c: "serves" }, 9_999), "b");
    assert.equal(granted(leases, { a: "wants", b: "wants", c: "serves" }, 10_000), "");
    assert.equal(granted(leases, { a: "wants", b: "wants", c: "serves" }, 13_000), "a");
  });

  it("reaches one instance from two routers that chose differently at first, whenever each began", () => {
    const all = { a: "wants", b: "wants", c: "serves" };
    for (let apartMs = 0; apartMs <= 13_000; apartMs += 500) {
      const [one, other] = [new RestartLeases(), new RestartLeases()];
      // One of them learns of `a` later.
      granted(one, { ...all, a: "serves" }, 0);
      let agreedAtMs: number | undefined;
      for (let nowMs = apartMs; nowMs < 60_000 && agreedAtMs === undefined; nowMs += 250) {
        const [first, second] = [granted(one, all, nowMs), granted(other, all, nowMs)];
        if (first !== "" && first === second) agreedAtMs = nowMs;
      }
      assert.ok(agreedAtMs !== undefined && agreedAtMs - apartMs <= 26_000, `${apartMs} ms apart: ${agreedAtMs}`);
    }
  });

  it("is forgotten with its model", () => {
    const leases = new RestartLeases();
    granted(leases, { a: "wants", b: "serves" }, 0);
    assert.equal(leases.any, true);
    leases.granted({ models: new Map() }, 1);
    assert.equal(leases.any, false);
  });
});

describe("instances that ask a router for a restart", () => {
  it("hear at once which of them may, and when it may no more", async () => {
    await using one = await startDecode({ instanceId: "d1" });
    await using other = await startDecode({ instanceId: "d2" });
    await using pool = createPool({ log: silentLog, clock: systemClock });
    pool.update([one.info, other.info]);
    for (const id of ["d1", "d2"]) await untilStanding(pool, id, "serves");
    for (const instance of [one, other]) instance.load({ restartWanted: "debt" });
    await eventually("the first may", () => one.grants.at(-1) === true);
    assert.deepEqual(other.grants, [false]);
    one.load({ state: State.DRAINING, restartWanted: "" });
    await eventually("its grant is over", () => one.grants.at(-1) === false);
    assert.deepEqual([one.grants, other.grants], [[false, true, false], [false]]);
  });
});
