import assert from "node:assert/strict";
import { Breaker } from "../../../services/router/pool/breaker.ts";
import { Pairs } from "../../../services/router/pool/pairs.ts";

const LIMITS = { failureLimit: 3, probeEveryMs: 500 };

describe("a breaker", () => {
  it("opens after the limit of failures in a row, and only then", () => {
    const breaker = new Breaker(LIMITS);
    assert.deepEqual(
      [1, 2, 3].map((atMs) => breaker.judge("bad", atMs)),
      [false, false, true],
    );
    assert.equal(breaker.open, true);
    assert.equal(breaker.judge("bad", 4), false, "it is open already");
  });

  it("also opens by failures among successes, but never by one in four", () => {
    const half = new Breaker(LIMITS);
    for (let count = 0; count < 10; count += 1) half.judge(count % 2 === 0 ? "bad" : "good", count);
    assert.equal(half.open, true);
    const quarter = new Breaker(LIMITS);
    for (let count = 0; count < 1_000; count += 1) quarter.judge(count % 4 === 0 ? "bad" : "good", count);
    assert.equal(quarter.open, false);
  });

  it("takes a failure back that was the request's own, even the one that opened it, but not a stall", () => {
    const breaker = new Breaker(LIMITS);
    breaker.judge("bad", 1);
    assert.equal(breaker.pardon(), false);
    assert.equal(breaker.spotless, true);
    assert.equal(breaker.suspicion(1), 0);
    for (const atMs of [1, 2, 3]) breaker.judge("bad", atMs);
    assert.equal(breaker.pardon(), true);
    assert.equal(breaker.open, false);
    assert.equal(breaker.judge("bad", 4), true, "two of its failures still count");
    breaker.probeFailed("refused", "It fails.", 5);
    assert.equal(breaker.pardon(), false, "a probe has failed too");
    const stalled = new Breaker(LIMITS);
    stalled.judge("bad", 1);
    stalled.judge("wedged", 2);
    assert.equal(stalled.pardon(), false);
    assert.equal(stalled.open, true);
  });

  it("opens at once for a leg that stalled, and ignores clients that leave", () => {
    const breaker = new Breaker(LIMITS);
    for (let count = 0; count < 100; count += 1) breaker.judge("none", count);
    assert.equal(breaker.spotless, true);
    assert.equal(breaker.judge("wedged", 1), true);
  });

  it("stays open whatever users' legs report, and is due for a probe after each pause", () => {
    const breaker = new Breaker(LIMITS);
    breaker.judge("wedged", 1_000);
    breaker.judge("good", 1_001);
    assert.equal(breaker.because, "failing");
    assert.equal(breaker.dueMs, 1_500);
    breaker.probing(1_500);
    assert.equal(breaker.dueMs, 2_000);
    breaker.probing(2_000);
    breaker.probeSoon(2_100);
    assert.equal(breaker.dueMs, 2_100);
  });

  it("is closed by a probe, on probation", () => {
    const breaker = new Breaker(LIMITS);
    breaker.judge("wedged", 1);
    assert.equal(breaker.close(), true);
    assert.equal(breaker.close(), false);
    assert.equal(breaker.open, false);
    assert.equal(breaker.judge("bad", 2), true);
  });

  it("gets a probe within a second after refused ones, and after growing pauses if probes hang", () => {
    const pauses = (failure: "refused" | "late" | "wrong", isCostly = false): number[] => {
      const breaker = new Breaker(LIMITS);
      breaker.judge("wedged", 0);
      return Array.from({ length: 8 }, () => {
        breaker.probeFailed(failure, "It failed.", 0, isCostly);
        return breaker.dueMs;
      });
    };
    assert.deepEqual(pauses("refused"), [1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000]);
    for (const failure of ["late", "wrong"] as const)
      assert.deepEqual(pauses(failure), [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
    // Each may leave KV in decode that nothing frees.
    assert.deepEqual(pauses("refused", true), [1_000, 2_000, 4_000, 8_000, 10_000, 10_000, 10_000, 10_000]);
  });

  it("is open from the start if answers must be proven, and reports the last probe's error", () => {
    const breaker = new Breaker(LIMITS);
    breaker.distrust(0);
    assert.deepEqual([breaker.because, breaker.dueMs], ["unproven", 0]);
    breaker.probeFailed("wrong", "Off by 0.9.", 0);
    assert.equal(breaker.text, "Off by 0.9.");
    assert.equal(breaker.close(), true);
    assert.equal(breaker.spotless, true, "a proof is no probation");
  });

  it("keeps the back-off of hung probes when the engine restarts", () => {
    const [refused, late] = [new Breaker(LIMITS), new Breaker(LIMITS)];
    for (const [breaker, failure] of [
      [refused, "refused"],
      [late, "late"],
    ] as const) {
      breaker.distrust(0);
      breaker.probeFailed(failure, "It failed.", 0);
      breaker.distrust(10); // Its engine has restarted.
    }
    assert.deepEqual([refused.dueMs, late.dueMs], [10, 1_000]);
  });

  it("remembers failures with a weight that fades", () => {
    const breaker = new Breaker(LIMITS);
    assert.equal(breaker.suspicion(0), 0);
    breaker.judge("bad", 0);
    breaker.judge("bad", 0);
    assert.equal(breaker.suspicion(0), 2);
    assert.equal(breaker.suspicion(5_000), 1);
    assert.equal(breaker.suspicion(60_000), 0);
  });
});

describe("the breakers of pairs", () => {
  const out = (pairs: Pairs): string[] =>
    [...pairs.open()].map(({ prefillId, decodeId }) => `${prefillId}|${decodeId}`);

  it("remember only pairs with failures", () => {
    const pairs = new Pairs(LIMITS);
    pairs.judge("p1", "d1", "good", 0);
    pairs.judge("p1", "d2", "wedged", 0);
    pairs.judge("p1", "d3", "bad", 0);
    assert.deepEqual(out(pairs), ["p1|d2"]);
    assert.equal(pairs.outOf("p1", "d2")?.because, "failing");
    assert.equal(pairs.close("p1", "d2"), true);
    assert.deepEqual(out(pairs), []);
    pairs.judge("p1", "d2", "wedged", 0);
    pairs.forget("d2");
    assert.deepEqual(out(pairs), []);
  });

  it("expect one probe, and another when one of the two has restarted", () => {
    const pairs = new Pairs(LIMITS);
    pairs.expect("p1", "d1", 0);
    assert.equal(pairs.outOf("p1", "d1")?.because, "unproven");
    pairs.close("p1", "d1");
    pairs.expect("p1", "d1", 0);
    assert.deepEqual(out(pairs), []);
    pairs.cool("d1", 0);
    pairs.expect("p1", "d1", 0);
    assert.deepEqual(out(pairs), ["p1|d1"]);
  });
});
