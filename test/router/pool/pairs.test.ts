// What is remembered of pairs beside their breakers: whether their engines have a connection.
import assert from "node:assert/strict";
import { BREAKER_LIMITS } from "../../../services/router/pool/breaker.ts";
import { Pairs } from "../../../services/router/pool/pairs.ts";

describe("a pair", () => {
  it("is warm once KV has moved, by a user's leg or a probe, until one of its engines starts again", () => {
    const pairs = new Pairs(BREAKER_LIMITS);
    assert.equal(pairs.isWarm("p1", "d1"), false);
    pairs.judge("p1", "d1", "none", 0);
    assert.equal(pairs.isWarm("p1", "d1"), false);
    pairs.judge("p1", "d1", "good", 0);
    pairs.close("p1", "d2");
    assert.deepEqual([pairs.isWarm("p1", "d1"), pairs.isWarm("p1", "d2")], [true, true]);
    pairs.cool("d1", 0);
    assert.deepEqual([pairs.isWarm("p1", "d1"), pairs.isWarm("p1", "d2")], [false, true]);
    pairs.forget("p1");
    assert.equal(pairs.isWarm("p1", "d2"), false);
  });

  it("is warm and in use again when its failure is taken back", () => {
    const pairs = new Pairs(BREAKER_LIMITS);
    pairs.judge("p1", "d1", "good", 0);
    pairs.judge("p1", "d1", "bad", 0);
    assert.equal(pairs.isWarm("p1", "d1"), false);
    pairs.pardon("p1", "d1");
    assert.equal(pairs.isWarm("p1", "d1"), true);
    assert.equal(pairs.any, false);
  });

  it("is cold again after a failed transfer, and needs no probe if a user's KV has moved", () => {
    const pairs = new Pairs(BREAKER_LIMITS);
    pairs.judge("p1", "d1", "good", 0);
    pairs.expect("p1", "d1", 0);
    assert.equal(pairs.outOf("p1", "d1"), undefined);
    pairs.judge("p1", "d1", "wedged", 0);
    assert.equal(pairs.isWarm("p1", "d1"), false);
    assert.equal(pairs.outOf("p1", "d1")?.because, "failing");
  });
});
