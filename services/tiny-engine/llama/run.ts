// One sequence in the embedded engine, and the command that starts it in the worker.
import { randomBytes } from "node:crypto";
import type { SequenceRequest, TokenLogprobs, TokenSink } from "../engine.ts";
import type { KvOutflow } from "../kv/connector.ts";
import { Sequence } from "../sequence.ts";
import type { Add } from "./worker/messages.ts";

export class Run extends Sequence {
  /** Its name in the worker. */
  readonly id: number;
  /** KV of the prompt that was transferred to this engine. */
  kv: readonly Buffer[] | null = null;
  /** KV of the prompt on its way to a decode engine. */
  outflow: KvOutflow | null = null;
  promptLogprobs: readonly (TokenLogprobs | null)[] | null = null;

  constructor(id: number, request: SequenceRequest, sink: TokenSink, arrivedMs: number) {
    super(request, sink, arrivedMs);
    this.id = id;
  }
}

/** Tokens that the sequence can grow to. */
export function tokenLimit({ prompt, sampling }: SequenceRequest): number {
  return prompt.length + sampling.maxTokens;
}

/** The command for the worker. Without a seed the randomness is the system's. */
export function addCommand({ id, request, kv, outflow }: Run, eos: ReadonlySet<number>): Add {
  const { prompt, sampling, promptLogprobs, pace } = request;
  const seed = sampling.seed === null ? randomBytes(8).readBigUInt64LE() : BigInt(sampling.seed);
  return {
    kind: "add",
    id,
    prompt,
    promptLogprobs,
    pace,
    sampling: { ...sampling, seed },
    ends: new Set([...(sampling.ignoreEos ? [] : eos), ...(sampling.stopTokenIds ?? [])]),
    kv,
    givesKv: outflow !== null,
  };
}
