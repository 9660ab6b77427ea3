// Made-up logprobs of the right shape: deterministic, the chosen token first, never above 0.
import type { TokenLogprobs } from "../engine.ts";
import { tokenizer } from "./tokenizer.ts";
import { mix } from "./kv-rows.ts";

/** Between 0 and 1, from the hash of all arguments. */
function fraction(...parts: number[]): number {
  return (parts.reduce((hash, part) => mix(hash ^ Math.imul(part, 0x9e3779b1)), 7) >>> 0) / 2 ** 32;
}

/** @param position Position of the token in the answer, from 1. */
export function outputLogprobs(token: number, position: number, seed: number, alternatives: number): TokenLogprobs {
  const logprob = -2 * fraction(token, position, seed);
  const top = alternatives === 0 ? [] : [{ token, logprob, rank: 1 }];
  for (let rank = 2, below = logprob; rank <= alternatives; rank++) {
    below -= 0.05 + fraction(token, position, seed, rank);
    top.push({
      token: other(
        top.map((entry) => entry.token),
        position * 31 + rank,
      ),
      logprob: below,
      rank,
    });
  }
  return { logprob, rank: 1, top };
}

/** The first token has none: nothing comes before it. */
export function promptLogprobs(
  prompt: readonly number[],
  seed: number,
  alternatives: number,
): (TokenLogprobs | null)[] {
  return prompt.map((token, position) => {
    if (position === 0) return null;
    const logprob = -4 - 5 * fraction(token, position, seed);
    const rank = 2 + Math.floor(100 * fraction(seed, token, position));
    const top = Array.from({ length: alternatives }, (_, index) => ({
      token: other([token], position * 31 + index),
      logprob: -0.5 - index - fraction(position, index, seed),
      rank: index + 1,
    }));
    return { logprob, rank, top };
  });
}

/** A printable token that is not among `taken`. */
function other(taken: readonly number[], draw: number): number {
  const words = tokenizer.vocabularySize - 260;
  for (let candidate = 260 + (draw % words); ; candidate = 260 + ((candidate - 259) % words)) {
    if (!taken.includes(candidate)) return candidate;
  }
}
