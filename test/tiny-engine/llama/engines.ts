// Embedded engines with small random models, for tests that need real arithmetic and no sense.
import { randomGguf, type RandomModel } from "../../../clients/common/random-gguf.ts";
import { startLlamaEngine, type LlamaEngineStart } from "../../../services/tiny-engine/llama/start-llama-engine.ts";
import type { SamplingParams } from "../../../services/tiny-engine/llama/sampling.ts";
import type { RunningEngine } from "../../../services/tiny-engine/serve-engine.ts";
import { pairOf, type Pair } from "../client.ts";

export const TINY: RandomModel = {
  layers: 2,
  dim: 64,
  heads: 4,
  kvHeads: 2,
  ffDim: 96,
  vocab: 512,
  maxContext: 1200,
  type: "Q8_0",
  seed: 3,
  speaks: true,
};

export const GREEDY: SamplingParams = {
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  seed: 0n,
  presencePenalty: 0,
  frequencyPenalty: 0,
  repetitionPenalty: 1,
  logitBias: null,
  maxTokens: 100,
  minTokens: 0,
  ignoreEos: false,
  stopTokenIds: null,
  logprobs: null,
};

const files = new Map<number, Buffer>();

/** @param seed Of the weights. */
export function tinyFile(seed = TINY.seed): Buffer {
  const known = files.get(seed) ?? randomGguf({ ...TINY, seed });
  files.set(seed, known);
  return known;
}

export function startTiny(options: Partial<LlamaEngineStart> = {}): Promise<RunningEngine> {
  return startLlamaEngine({ model: tinyFile(), modelName: "tiny", ...options });
}

export type { Pair };

export function startPair(
  prefill: Partial<LlamaEngineStart> = {},
  decode: Partial<LlamaEngineStart> = {},
): Promise<Pair> {
  return pairOf(startTiny, prefill, decode);
}

/** A prompt of so many tokens, none of them special. */
export function tokensOf(length: number, seed = 1): number[] {
  return Array.from({ length }, (_, at) => 6 + ((at * at * 31 + at * 7 * seed + seed * 13) % (TINY.vocab - 6)));
}
