import assert from "node:assert/strict";
import { goodput, percentile, summarise, timePerOutputToken } from "../../../clients/loadgen/statistics.ts";

describe("percentiles", () => {
  it("lie linearly between the two nearest ranks, as numpy's do", () => {
    const sorted = [10, 20, 30, 40];
    assert.equal(percentile(sorted, 0), 10);
    assert.equal(percentile(sorted, 0.5), 25);
    assert.equal(percentile(sorted, 0.95), 38.5);
    assert.equal(percentile(sorted, 1), 40);
  });

  it("of one value are that value, and of none are NaN", () => {
    assert.equal(percentile([7], 0.99), 7);
    assert.ok(Number.isNaN(percentile([], 0.5)));
  });

  it("sort numbers as numbers", () => {
    const summary = summarise([100, 9, 80]);
    assert.deepEqual(
      { count: summary.count, p50: summary.p50, max: summary.max, mean: summary.mean },
      { count: 3, p50: 80, max: 100, mean: 63 },
    );
  });
});

describe("time per output token", () => {
  it("spreads what follows the first token over the others", () => {
    assert.equal(timePerOutputToken(1100, 100, 11), 100);
  });

  it("is NaN for a single token", () => {
    assert.ok(Number.isNaN(timePerOutputToken(100, 100, 1)));
  });
});

describe("goodput", () => {
  const requests = [
    { completed: true, ttftMs: 50, tpotMs: 10 },
    { completed: true, ttftMs: 500, tpotMs: 10 },
    { completed: true, ttftMs: 50, tpotMs: 100 },
    { completed: false, ttftMs: 50, tpotMs: 10 },
    { completed: true, ttftMs: 50, tpotMs: Number.NaN },
  ];

  it("counts requests a second that completed within every objective", () => {
    assert.equal(goodput(requests, { ttftMs: 100, tpotMs: 20 }, 2000), 1);
  });

  it("leaves out an objective that was not set", () => {
    assert.equal(goodput(requests, { ttftMs: undefined, tpotMs: undefined }, 1000), 4);
  });

  it("does not take a request without a first token for a fast one", () => {
    assert.equal(
      goodput([{ completed: true, ttftMs: Number.NaN, tpotMs: Number.NaN }], { ttftMs: 100, tpotMs: undefined }, 1000),
      0,
    );
  });
});
