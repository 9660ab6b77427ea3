import assert from "node:assert/strict";
import { closedLoop, poissonArrivals, seededRandom } from "../../../clients/loadgen/arrivals.ts";

describe("seeded random numbers", () => {
  it("are the same for the same seed and others for another", () => {
    const take = (seed: number): number[] => {
      const random = seededRandom(seed);
      return [random(), random(), random()];
    };
    assert.deepEqual(take(1), take(1));
    assert.notDeepEqual(take(1), take(2));
    for (const value of take(3)) assert.ok(value >= 0 && value < 1);
  });
});

describe("Poisson arrivals", () => {
  it("come at the requested rate, in order, with exponential gaps", () => {
    const atMs = poissonArrivals(20_000, 50, seededRandom(7));
    const gaps = atMs.map((at, index) => at - (atMs[index - 1] ?? 0));
    assert.ok(gaps.every((gap) => gap >= 0));
    const mean = atMs[atMs.length - 1]! / gaps.length;
    assert.ok(Math.abs(mean - 20) < 0.5, `mean gap ${mean} ms`);
    // An exponential's standard deviation equals its mean.
    const deviation = Math.sqrt(gaps.reduce((sum, gap) => sum + (gap - mean) ** 2, 0) / gaps.length);
    assert.ok(Math.abs(deviation / mean - 1) < 0.05, `deviation ${deviation} ms`);
  });
});

describe("a closed loop", () => {
  it("never runs more requests at a time than its concurrency, and keeps the order of the results", async () => {
    let running = 0;
    let most = 0;
    const results = await closedLoop(20, 3, async (index) => {
      most = Math.max(most, ++running);
      await new Promise((resolve) => setImmediate(resolve));
      running--;
      return index;
    });
    assert.equal(most, 3);
    assert.deepEqual(
      results,
      Array.from({ length: 20 }, (_, index) => index),
    );
  });
});
