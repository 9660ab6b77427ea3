import assert from "node:assert/strict";
import { planFaults } from "../../../clients/chaos/schedule.ts";

const FLEET = { routers: 2, prefill: 2, decode: 3 };

describe("the schedule of chaos", () => {
  it("is the same for the same seed, and differs for another seed", () => {
    assert.deepEqual(planFaults(7, 60_000, FLEET), planFaults(7, 60_000, FLEET));
    assert.notDeepEqual(planFaults(7, 60_000, FLEET), planFaults(8, 60_000, FLEET));
  });

  it("is the beginning of a longer schedule", () => {
    const short = planFaults(3, 30_000, FLEET);
    assert.deepEqual(planFaults(3, 60_000, FLEET).slice(0, short.length), short);
  });

  it("has every kind of fault in ascending order of time, and none in the rest at the end", () => {
    const plan = planFaults(1, 3_600_000, FLEET, { restMs: 10_000 });
    assert.equal(new Set(plan.map(({ kind }) => kind)).size, 19);
    for (const [index, fault] of plan.entries())
      assert.ok(fault.index === index && fault.atMs >= (plan[index - 1]?.atMs ?? 0));
    assert.ok(plan.at(-1)!.atMs < 3_590_000);
  });

  it("never hurts both instances of a role that has two", () => {
    const plan = planFaults(5, 600_000, FLEET);
    for (const [index, { target, atMs, durationMs }] of plan.entries()) {
      if (target.startsWith("decode")) continue;
      const role = target.split("-")[0]!;
      const over = plan
        .slice(index + 1)
        .filter((other) => other.atMs <= atMs + durationMs && other.target.startsWith(role));
      assert.deepEqual(over, []);
    }
  });

  it("can be limited to some kinds", () => {
    assert.deepEqual(
      [...new Set(planFaults(1, 600_000, FLEET, { kinds: ["drain"] }).map(({ kind }) => kind))],
      ["drain"],
    );
    assert.deepEqual(planFaults(1, 60_000, FLEET, { kinds: ["none of them"] }), []);
  });
});
