// Picks the next token from logits, with vLLM's meaning and order of the parameters:
// bias, bans, penalties, temperature, min_p, top_k, top_p. A pure function of its arguments: the random number comes
// from (seed, position) alone, so a seeded answer is the same with or without disaggregation and batching.
// Source: vLLM 0.32, v1/sample/sampler.py.
import type { Sampling, TokenLogprobs } from "../engine.ts";
import { exp, ln } from "./exact-math.ts";

/** The seed is a number even if the request has none. */
export type SamplingParams = Omit<Sampling, "seed"> & { readonly seed: bigint };

export interface TokenHistory {
  readonly promptTokens: ReadonlySet<number>;
  /** How often each token occurs in the answer so far. */
  readonly outputCounts: ReadonlyMap<number, number>;
}

/**
 * @param logits [vocab]. Overwritten.
 * @param position Of the new token in its sequence, prompt included: the counter of the random numbers.
 * @param banned Tokens that must not be drawn now, such as the end before `min_tokens`.
 */
export function sample(
  logits: Float32Array,
  params: SamplingParams,
  history: TokenHistory,
  position: number,
  banned: Iterable<number>,
): number {
  for (const [token, bias] of params.logitBias ?? []) {
    if (token < logits.length) logits[token] = logits[token]! + bias;
  }
  for (const token of banned) logits[token] = -Infinity;
  penalise(logits, params, history);
  if (params.temperature === 0) return argmax(logits);
  return draw(candidates(logits, params), uniform(params.seed, position));
}

/** Index of the largest logit, the first of equals. */
function argmax(logits: Float32Array): number {
  let best = 0;
  for (let token = 1; token < logits.length; token++) if (logits[token]! > logits[best]!) best = token;
  return best;
}

function penalise(logits: Float32Array, params: SamplingParams, history: TokenHistory): void {
  const { repetitionPenalty, frequencyPenalty, presencePenalty } = params;
  if (repetitionPenalty !== 1) {
    const seen = new Set([...history.promptTokens, ...history.outputCounts.keys()]);
    for (const token of seen) {
      const logit = logits[token]!;
      logits[token] = logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty;
    }
  }
  if (frequencyPenalty === 0 && presencePenalty === 0) return;
  for (const [token, count] of history.outputCounts) {
    logits[token] = logits[token]! - frequencyPenalty * count - presencePenalty;
  }
}

interface Candidate {
  readonly token: number;
  /** Relative to the likeliest, whose weight is 1. */
  readonly weight: number;
}

/** The tokens that may be drawn, likeliest first. */
function candidates(logits: Float32Array, params: SamplingParams): Candidate[] {
  const best = logits[argmax(logits)]!;
  const kept: Candidate[] = [];
  for (let token = 0; token < logits.length; token++) {
    const distance = (logits[token]! - best) / params.temperature;
    // Below e^-40 a token is never drawn by a 53-bit number.
    if (distance < -40) continue;
    const weight = exp(distance);
    if (weight >= params.minP) kept.push({ token, weight });
  }
  // Ties are ordered by token, so that the result doesn't depend on the sort.
  kept.sort((a, b) => b.weight - a.weight || a.token - b.token);
  if (params.topK > 0 && kept.length > params.topK) kept.length = params.topK;
  if (params.topP < 1) {
    const total = sum(kept);
    let covered = 0;
    const needed = kept.findIndex(({ weight }) => (covered += weight) >= params.topP * total);
    if (needed >= 0) kept.length = needed + 1;
  }
  return kept;
}

function draw(kept: readonly Candidate[], random: number): number {
  let left = random * sum(kept);
  for (const { token, weight } of kept) {
    left -= weight;
    if (left < 0) return token;
  }
  return kept.at(-1)!.token;
}

function sum(kept: readonly Candidate[]): number {
  return kept.reduce((total, { weight }) => total + weight, 0);
}

/** Logprobs of raw logits: of `token`, and of the `count` likeliest, likeliest first. */
export function logprobs(logits: Float32Array, token: number, count: number): TokenLogprobs {
  const best = logits[argmax(logits)]!;
  let total = 0;
  let rank = 1;
  for (const logit of logits) {
    total += exp(Math.max(-700, logit - best));
    if (logit > logits[token]!) rank++;
  }
  const offset = best + ln(total);
  const top = Array.from(logits.keys())
    .sort((a, b) => logits[b]! - logits[a]! || a - b)
    .slice(0, count)
    .map((candidate, index) => ({ token: candidate, logprob: logits[candidate]! - offset, rank: index + 1 }));
  return { logprob: logits[token]! - offset, rank, top };
}

/**
 * In [0, 1), from 53 bits of a hash of both numbers. The finaliser is MurmurHash3's, twice over with different keys.
 */
export function uniform(seed: bigint, position: number): number {
  const low = Number(BigInt.asUintN(32, seed));
  const high = Number(BigInt.asUintN(32, seed >> 32n));
  const a = mix(mix(low ^ 0x9e3779b9) + mix(high ^ 0x85ebca6b) + Math.imul(position, 0xc2b2ae35));
  const b = mix(a ^ mix(high + 0x27d4eb2f) ^ Math.imul(position + 1, 0x165667b1) ^ low);
  return ((a >>> 5) * 67_108_864 + (b >>> 6)) / 9_007_199_254_740_992;
}

function mix(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}
