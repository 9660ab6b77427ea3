// What a choice does after each failure, explored: every course of failures of every kind, on a small fleet.
import assert from "node:assert/strict";
import { FAILURES, type FailureCode } from "../../../services/common/errors.ts";
import { afterFailure, afterRefusal, type RetryRules } from "../../../services/router/relay/retry.ts";
import type { Exclusion } from "../../../services/router/placement/placement.ts";
import { createRetryBudget } from "../../../services/router/relay/retry-budget.ts";
import { manualClock } from "../../support/manual-clock.ts";

const CODES = Object.keys(FAILURES) as FailureCode[];
const FLEET = { prefill: ["p1", "p2"], decode: ["d1", "d2"] } as const;
type Side = keyof typeof FLEET;

interface Course {
  readonly retries: number;
  readonly refusals: number;
  readonly budget: number;
  readonly waits: number;
  readonly shunned: Readonly<Record<string, Exclusion>>;
  readonly tried: readonly string[];
}

/** Instances that may be picked: never a wedged one; one that failed where there is no other. */
function able(side: Side, { shunned }: Course): string[] {
  const sound = FLEET[side].filter((id) => shunned[id] !== "wedged");
  const fresh = sound.filter((id) => shunned[id] === undefined);
  return fresh.length > 0 ? fresh : sound;
}

/** Walks every course; returns how many there are. */
function explore(limit: number, strict: boolean, decodeFirst: boolean): number {
  let courses = 0;
  const seen = new Set<string>();
  const walk = (course: Course): void => {
    const key = JSON.stringify([course.retries, course.refusals, course.budget, course.waits, course.shunned]);
    if (seen.has(key)) return;
    seen.add(key);
    assert.ok(course.retries <= limit, "more retries than the limit");
    assert.ok(course.refusals <= 16, "refused for ever");
    assert.ok(course.budget >= 0, "more retries than the budget has");
    for (const prefill of able("prefill", course)) {
      for (const decode of able("decode", course)) {
        assert.notEqual(course.shunned[prefill], "wedged");
        assert.notEqual(course.shunned[decode], "wedged");
        for (const code of CODES) {
          for (const side of ["prefill", "decode"] as const) {
            for (const [delivered, repeatable] of [
              [false, false],
              [false, true],
              [true, false],
              [true, true],
            ] as const) {
              courses += 1;
              let taken = 0;
              const rules: RetryRules = {
                limit,
                strict,
                takeFromBudget: () => course.budget > taken && (taken += 1) > 0,
              };
              const next = afterFailure({ code, side, delivered, repeatable, decodeFirst }, course, rules);
              if (next.kind !== "retry") assert.equal(taken, 0, "the budget pays only for what is tried");
              if (delivered && !repeatable)
                assert.equal(next.kind, "give-up", "tried again after the client has a byte");
              if (FAILURES[code].retry === "never") assert.equal(next.kind, "give-up", `${code} is tried again`);
              if (strict) assert.notEqual(next.kind, "retry", "tried again, and strict");
              if (next.kind === "wait") assert.equal(code, "instance_busy");
              if (next.kind !== "retry") {
                // Waits are bounded by the queue's time, which is not modelled here.
                if (next.kind === "wait" && course.waits < 2) walk({ ...course, waits: course.waits + 1 });
                continue;
              }
              const isFree = next.refused !== undefined;
              assert.equal(isFree, code === "instance_unavailable" && !delivered, `${code} is free`);
              assert.equal(taken, isFree ? 0 : 1, "tried again without paying");
              assert.ok(Object.keys(next.exclude).length > 0, "tried again as if nothing had been");
              const shunned: Record<string, Exclusion> = { ...course.shunned };
              if (next.exclude.prefill !== undefined)
                shunned[prefill] = shunned[prefill] === "wedged" ? "wedged" : next.exclude.prefill;
              if (next.exclude.decode !== undefined)
                shunned[decode] = shunned[decode] === "wedged" ? "wedged" : next.exclude.decode;
              if (code === "leg_stalled")
                assert.equal(
                  shunned[side === "prefill" ? prefill : decode],
                  "wedged",
                  "asked again where it stood still",
                );
              walk({
                ...course,
                retries: course.retries + (isFree ? 0 : 1),
                refusals: course.refusals + (isFree ? 1 : 0),
                budget: course.budget - taken,
                shunned,
                tried: [...course.tried, `${prefill}${decode}`],
              });
            }
          }
        }
      }
    }
  };
  walk({ retries: 0, refusals: 15, budget: 2, waits: 0, shunned: {}, tried: [] });
  return courses;
}

describe("what follows a failed attempt", () => {
  for (const decodeFirst of [true, false]) {
    for (const strict of [false, true]) {
      it(`keeps to its limits in every course: ${decodeFirst ? "decode first" : "prefill first"}${strict ? ", strict" : ""}`, function () {
        const courses = explore(3, strict, decodeFirst);
        assert.ok(courses > 500);
        this.test!.title += ` (${courses} steps)`;
      });
    }
  }

  it("is a free wait for a busy instance, and another instance for a refused ticket", () => {
    const rules: RetryRules = { limit: 1, strict: false, takeFromBudget: () => true };
    const failed = { side: "decode", delivered: false, repeatable: false, decodeFirst: true } as const;
    const much = { retries: 9, refusals: 9 };
    assert.deepEqual(afterFailure({ ...failed, code: "instance_busy" }, much, rules), { kind: "wait", busy: "decode" });
    assert.deepEqual(afterRefusal("instance_busy", much, { ...rules, strict: true }), { kind: "wait", busy: "decode" });
    const none = { retries: 0, refusals: 0 };
    assert.deepEqual(afterRefusal("kv_transfer_failed", none, rules), { kind: "retry", exclude: { decode: "failed" } });
    assert.deepEqual(afterRefusal("kv_transfer_failed", much, rules), { kind: "give-up", because: "limit" });
    const poor = { ...rules, takeFromBudget: () => false };
    assert.deepEqual(afterRefusal("kv_transfer_failed", none, poor), { kind: "give-up", because: "budget" });
  });

  it("costs nothing if an instance takes no legs, until sixteen have refused or retries are off", () => {
    const rules: RetryRules = { limit: 1, strict: false, takeFromBudget: () => false };
    const failed = { side: "prefill", delivered: false, repeatable: false, decodeFirst: true } as const;
    const next = { kind: "retry", exclude: { prefill: "failed" }, refused: "prefill" };
    const spent = { retries: 9, refusals: 15 };
    assert.deepEqual(afterFailure({ ...failed, code: "instance_unavailable" }, spent, rules), next);
    assert.deepEqual(afterRefusal("instance_unavailable", spent, rules), {
      kind: "retry",
      exclude: { decode: "failed" },
      refused: "decode",
    });
    const limit = { kind: "give-up", because: "limit" };
    assert.deepEqual(afterRefusal("instance_unavailable", { ...spent, refusals: 16 }, rules), limit);
    assert.deepEqual(afterRefusal("instance_unavailable", spent, { ...rules, limit: 0 }), limit);
    assert.equal(afterRefusal("instance_unavailable", spent, { ...rules, strict: true }).kind, "give-up");
  });
});

describe("the retry budget", () => {
  it("earns retries by requests and by seconds", () => {
    const clock = manualClock();
    const budget = createRetryBudget({ current: { retryRatio: 0.2 } }, clock, 1);
    const drained = (): number => {
      let count = 0;
      while (budget.take()) count += 1;
      return count;
    };
    assert.equal(drained(), 2, "two seconds are saved up");
    for (let count = 0; count < 50; count += 1) budget.earn();
    assert.equal(drained(), 10);
    clock.advance(1_000);
    assert.equal(drained(), 1);
    clock.advance(3_600_000);
    assert.equal(drained(), 2, "no more is saved than two seconds");
    for (let count = 0; count < 100_000; count += 1) budget.earn();
    assert.equal(drained(), 100, "nor than five hundred requests");
  });

  it("grows by a quarter under overload, and keeps what was saved for the death of one instance", () => {
    const clock = manualClock();
    const overload = { on: false };
    const budget = createRetryBudget({ current: { retryRatio: 0.2 } }, clock, 1, overload);
    const drained = (): number => {
      let count = 0;
      while (budget.take()) count += 1;
      return count;
    };
    for (let count = 0; count < 50; count += 1) budget.earn();
    overload.on = true;
    assert.equal(drained(), 12, "two seconds and fifty requests are saved up");
    for (let count = 0; count < 200; count += 1) budget.earn();
    assert.equal(drained(), 10, "a fifth of fifty");
    clock.advance(4_000);
    assert.equal(drained(), 1);
  });

  it("is empty if both rates are 0", () => {
    const budget = createRetryBudget({ current: { retryRatio: 0 } }, manualClock(), 0);
    budget.earn();
    assert.equal(budget.take(), false);
  });
});
