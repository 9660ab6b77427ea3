import assert from "node:assert/strict";
import { exp, ln, sin, cos } from "../../../services/tiny-engine/llama/exact-math.ts";
import { logprobs, sample, uniform, type SamplingParams } from "../../../services/tiny-engine/llama/sampling.ts";
import { GREEDY } from "./engines.ts";

const NOTHING = { promptTokens: new Set<number>(), outputCounts: new Map<number, number>() };

function pick(
  logits: readonly number[],
  over: Partial<SamplingParams> = {},
  history = NOTHING,
  position = 0,
  banned: number[] = [],
): number {
  return sample(Float32Array.from(logits), { ...GREEDY, ...over }, history, position, banned);
}

/** Share of each token over many positions. */
function shares(logits: readonly number[], over: Partial<SamplingParams>): number[] {
  const draws = 20_000;
  const counts = logits.map(() => 0);
  for (let position = 0; position < draws; position++)
    counts[pick(logits, { temperature: 1, seed: 5n, ...over }, NOTHING, position)]!++;
  return counts.map((count) => count / draws);
}

describe("sampling", () => {
  it("without temperature takes the likeliest token, the first of equals", () => {
    assert.equal(pick([1, 3, 3, 2]), 1);
  });

  it("draws tokens as often as their probability says", () => {
    const logits = [0, 1, 2];
    const weights = logits.map(Math.exp);
    const total = weights.reduce((sum, weight) => sum + weight);
    shares(logits, {}).forEach((share, token) =>
      assert.ok(Math.abs(share - weights[token]! / total) < 0.015, `${token}: ${share}`),
    );
  });

  it("sharpens with a low temperature", () => {
    assert.ok(shares([0, 1], { temperature: 0.25 })[1]! > 0.97);
  });

  it("keeps to the tokens that top_k, top_p and min_p leave", () => {
    assert.deepEqual(shares([0, 1, 2, 3], { topK: 1 }), [0, 0, 0, 1]);
    assert.equal(shares([0, 1, 2, 3], { topP: 0.6 })[2], 0);
    assert.equal(shares([0, 5], { minP: 0.1 })[0], 0);
    assert.ok(shares([4.9, 5], { minP: 0.1 })[0]! > 0.3);
  });

  it("obeys bans and biases", () => {
    assert.equal(pick([1, 9], {}, NOTHING, 0, [1]), 0);
    assert.equal(pick([1, 9], { logitBias: new Map([[0, 10]]) }), 0);
  });

  it("penalises tokens of the answer, and with repetition_penalty also those of the prompt", () => {
    const said = { promptTokens: new Set([0]), outputCounts: new Map([[1, 2]]) };
    assert.equal(pick([1, 2, 0], { frequencyPenalty: 1 }, said), 0);
    assert.equal(pick([1, 2, 0], { presencePenalty: 1.5 }, said), 0);
    assert.equal(pick([1, 2, 0.9], { repetitionPenalty: 3 }, said), 2);
    assert.equal(pick([-1, -1.5, -2], { repetitionPenalty: 3 }, said), 2);
  });

  it("is a function of seed and position alone", () => {
    const logits = Array.from({ length: 50 }, (_, token) => Math.sin(token * 7));
    const run = (seed: bigint): number[] =>
      Array.from({ length: 30 }, (_, position) => pick(logits, { temperature: 1, seed }, NOTHING, position));
    assert.deepEqual(run(7n), run(7n));
    assert.notDeepEqual(run(7n), run(8n));
    assert.notDeepEqual(run(1n), run(1n + (1n << 40n)));
  });

  it("gives logprobs that are those of the raw logits", () => {
    const { logprob, rank, top } = logprobs(Float32Array.from([0, Math.log(3)]), 0, 2);
    assert.ok(Math.abs(logprob - Math.log(0.25)) < 1e-6);
    assert.equal(rank, 2);
    assert.deepEqual(
      top.map(({ token, rank }) => [token, rank]),
      [
        [1, 1],
        [0, 2],
      ],
    );
  });
});

describe("random numbers", () => {
  it("fill [0, 1) evenly over positions and over seeds", () => {
    for (const number of [(i: number) => uniform(42n, i), (i: number) => uniform(BigInt(i) * 1_000_003n, 3)]) {
      const bins = new Array<number>(20).fill(0);
      for (let i = 0; i < 20_000; i++) bins[Math.floor(number(i) * 20)]!++;
      // Chi-squared with 19 degrees of freedom: above 50 once in 7,000 times, and these numbers are fixed.
      const chi = bins.reduce((sum, count) => sum + (count - 1000) ** 2 / 1000, 0);
      assert.ok(chi < 50, `chi-squared ${chi}`);
    }
  });
});

describe("exact mathematics", () => {
  it("agrees with the usual functions to twelve digits", () => {
    const close = (a: number, b: number): void =>
      assert.ok(Math.abs(a - b) <= 1e-12 * Math.max(1, Math.abs(b)), `${a} and ${b}`);
    for (let x = -40; x <= 40; x += 0.37) close(exp(x), Math.exp(x));
    for (let x = 0.001; x <= 1e6; x *= 1.7) close(ln(x), Math.log(x));
    for (let x = -3000; x <= 3000; x += 7.7) {
      close(sin(x), Math.sin(x));
      close(cos(x), Math.cos(x));
    }
  });
});
