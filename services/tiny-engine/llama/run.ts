// One sequence in the engine: its request, the sink of its answer, and its progress.
import { randomBytes } from "node:crypto";
import type { SequenceRequest, TokenLogprobs, TokenSink } from "../engine.ts";
import type { KvOutflow } from "../kv/connector.ts";
import type { Measured } from "../metrics.ts";
import type { Add } from "./worker/messages.ts";

export interface Run extends Measured {
  /** Its name in the worker. */
  readonly id: number;
  readonly sink: TokenSink;
  state: "waiting" | "running" | "ended";
  scheduledMs: number;
  outputCount: number;
  cachedTokens: number;
  /** KV of the prompt that was transferred to this engine. */
  kv: readonly Buffer[] | null;
  /** KV of the prompt on its way to a decode engine. */
  outflow: KvOutflow | null;
  promptLogprobs: readonly (TokenLogprobs | null)[] | null;
  /** Stops a push that this sequence waits for. */
  readonly cancel: AbortController;
}

export function newRun(id: number, request: SequenceRequest, sink: TokenSink, nowMs: number): Run {
  return {
    id,
    request,
    sink,
    arrivedMs: nowMs,
    state: "waiting",
    scheduledMs: 0,
    firstTokenMs: 0,
    lastTokenMs: 0,
    outputCount: 0,
    cachedTokens: 0,
    preemptions: 0,
    kv: null,
    outflow: null,
    promptLogprobs: null,
    cancel: new AbortController(),
  };
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
