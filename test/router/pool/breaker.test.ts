import assert from "node:assert/strict";
import { Breaker } from "../../../services/router/pool/breaker.ts";
import { Pairs } from "../../../services/router/pool/pairs.ts";

const LIMITS = { failureLimit: 3, canaryEveryMs: 500 };

describe("a breaker", () => {
  it("opens after so many failures in a row, and only then", () => {
    const breaker = new Breaker(LIMITS);
    assert.deepEqual(
      [1, 2, 3].map((atMs) => breaker.judge("bad", atMs)),
      [false, false, true],
    );
    assert.equal(breaker.open, true);
    assert.equal(breaker.judge("bad", 4), false, "it is open already");
  });

  it("opens by failures among successes too, and never by one in four", () => {
    const half = new Breaker(LIMITS);
    for (let count = 0; count < 10; count += 1) half.judge(count % 2 === 0 ? "bad" : "good", count);
    assert.equal(half.open, true);
    const quarter = new Breaker(LIMITS);
    for (let count = 0; count < 1_000; count += 1) quarter.judge(count % 4 === 0 ? "bad" : "good", count);
    assert.equal(quarter.open, false);
  });

  it("opens at once for a leg that stood still, and takes no notice of clients that leave", () => {
    const breaker = new Breaker(LIMITS);
    for (let count = 0; count < 100; count += 1) breaker.judge("none", count);
    assert.equal(breaker.spotless, true);
    assert.equal(breaker.judge("wedged", 1), true);
  });

  it("stays open whatever users' legs bring, and is due for a canary in each pause", () => {
    const breaker = new Breaker(LIMITS);
    breaker.judge("wedged", 1_000);
    breaker.judge("good", 1_001);
    assert.equal(breaker.open, true);
    assert.equal(breaker.due(1_499), false);
    assert.equal(breaker.due(1_500), true);
    breaker.probing(1_500);
    assert.equal(breaker.due(1_999), false);
    assert.equal(breaker.due(2_000), true);
    breaker.probing(2_000);
    breaker.probeNow(2_100);
    assert.equal(breaker.due(2_100), true);
  });

  it("is closed by a canary, on probation", () => {
    const breaker = new Breaker(LIMITS);
    breaker.judge("wedged", 1);
    assert.equal(breaker.close(), true);
    assert.equal(breaker.close(), false);
    assert.equal(breaker.open, false);
    assert.equal(breaker.judge("bad", 2), true);
  });

  it("suspects what failed, less and less", () => {
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
  it("remember only pairs with something against them", () => {
    const pairs = new Pairs(LIMITS);
    pairs.judge("p1", "d1", "good", 0);
    pairs.judge("p1", "d2", "wedged", 0);
    pairs.judge("p1", "d3", "bad", 0);
    assert.deepEqual([...pairs.broken()], ["p1|d2"]);
    assert.equal(pairs.close("p1", "d2"), true);
    assert.deepEqual([...pairs.broken()], []);
    pairs.judge("p1", "d2", "wedged", 0);
    pairs.forget("d2");
    assert.deepEqual([...pairs.broken()], []);
  });
});
