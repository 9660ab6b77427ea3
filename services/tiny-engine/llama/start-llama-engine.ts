// Starts an embedded engine: the model's file, its worker, its connector, its HTTP server.
import { totalmem } from "node:os";
import { serveEngine, type EngineOptions, type RunningEngine } from "../serve-engine.ts";
import { LlamaEngine } from "./llama-engine.ts";
import { openModelFile } from "./model-file.ts";
import { kvBlockBytes, KV_BLOCK_TOKENS, type LlamaShape } from "./shape.ts";
import { startLlamaWorker } from "./worker/start-worker.ts";

/** By default the name is the one in the file, and the length, which it also limits, is the model's context. */
export interface LlamaEngineStart extends EngineOptions {
  /** A GGUF file, as a path or as its bytes. */
  readonly model: string | Uint8Array;
  /** Hash to claim in KV messages instead of the file's, for tests of a false claim. */
  readonly claimedHash?: string | undefined;
}

const GIB = 1024 ** 3;

/** @throws GgufError if the model can't be run here, RangeError for options that contradict each other. */
export async function startLlamaEngine(options: LlamaEngineStart): Promise<RunningEngine> {
  const { bytes, ...file } = openModelFile(options.model);
  const { modelName = file.name, claimedHash: modelHash = file.hash, kvSlots: slots = 64 } = options;
  const maxLength = Math.min(options.maxLength ?? Infinity, file.shape.maxContext);
  const kvTokenLimit = options.kvTokenLimit ?? defaultTokenLimit(file.shape, slots, maxLength);
  if (kvTokenLimit < maxLength) {
    throw new RangeError(
      `kv.token_limit ${kvTokenLimit} can't hold one sequence of ${maxLength} tokens: raise it, or lower model.max_len`,
    );
  }
  const blockCount = Math.floor(kvTokenLimit / KV_BLOCK_TOKENS);
  const worker = await startLlamaWorker({ file: bytes, kvBytes: blockCount * kvBlockBytes(file.shape) });
  const model = { file, modelName, modelHash, maxLength, slots, blockCount };
  return serveEngine(options, (core) => new LlamaEngine(model, worker, core));
}

/** Within a quarter of the memory, which is allocated when tokens arrive: a high limit costs nothing until then. */
function defaultTokenLimit(shape: LlamaShape, slots: number, maxLength: number): number {
  const budget = Math.min(totalmem() / 4, 2 * GIB);
  const blocks = Math.min(slots * Math.ceil(maxLength / KV_BLOCK_TOKENS), Math.floor(budget / kvBlockBytes(shape)));
  return blocks * KV_BLOCK_TOKENS;
}
