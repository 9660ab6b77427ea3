import assert from "node:assert/strict";
import { PromptPace } from "../../services/prefill/prompt-pace.ts";
import { manualClock } from "../support/manual-clock.ts";

describe("the pace of a prefill engine", () => {
  const burst = (legs: number): number => {
    const clock = manualClock();
    const pace = new PromptPace(clock);
    // One after the other, as the engine computes what came at once.
    for (let turn = 0; turn < 20; turn++) {
      for (let count = 0; count < legs; count++) pace.began();
      for (let count = 0; count < legs; count++) {
        clock.advance(100);
        pace.ended(100);
      }
      clock.advance(10_000);
    }
    return pace.tokensPerMs;
  };

  it("is the same for legs that share the engine as for legs that have it alone, and no pause counts", () => {
    assert.deepEqual([burst(1), burst(8)], [1, 1]);
  });

  it("learns nothing from legs without an answer, or with all of their prompt cached", () => {
    const clock = manualClock();
    const pace = new PromptPace(clock);
    pace.began();
    clock.advance(1_000);
    pace.ended(0);
    assert.equal(pace.tokensPerMs, 0);
    pace.began();
    pace.ended(100);
    assert.equal(pace.tokensPerMs, 0, "no time passed");
  });
});
