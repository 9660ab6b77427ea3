// One sequence in the sim: its state, and the scheduler's account of it.
import type { SequenceRequest, TokenSink } from "../engine.ts";
import type { Prose } from "./prose.ts";

export interface Sequence {
  readonly request: SequenceRequest;
  readonly sink: TokenSink;
  readonly arrivedMs: number;
  /** How the sequence gets its prompt's KV. */
  source: "compute" | "transfer";
  /** Null until the prompt's KV has arrived. */
  prose: Prose | null;
  promptTokens: readonly number[];
  /** Prompt tokens still to compute. After a preemption the answer so far counts again. */
  prefillLeft: number;
  /** Tokens of this sequence in the KV cache. */
  kvTokens: number;
  cachedTokens: number;
  outputCount: number;
  readonly outputTokens: number[];
  /** Set once, with the outcome counted. */
  ended: boolean;
  /** The running step's work for this sequence. */
  planned: "nothing" | "prefill" | "decode";
  plannedPrefill: number;
  /** No token before this time: a slowed sequence. */
  notBeforeMs: number;
  scheduledMs: number;
  firstTokenMs: number;
  lastTokenMs: number;
  preemptions: number;
  state: "waiting" | "running" | "transferring" | "ended";
  /** Stops a transfer that this sequence waits for. */
  readonly cancel: AbortController;
}

export function newSequence(request: SequenceRequest, sink: TokenSink, nowMs: number): Sequence {
  return {
    request,
    sink,
    arrivedMs: nowMs,
    source: "compute",
    prose: null,
    promptTokens: request.prompt,
    prefillLeft: request.prompt.length,
    kvTokens: 0,
    cachedTokens: 0,
    outputCount: 0,
    outputTokens: [],
    ended: false,
    planned: "nothing",
    plannedPrefill: 0,
    notBeforeMs: 0,
    scheduledMs: 0,
    firstTokenMs: 0,
    lastTokenMs: 0,
    preemptions: 0,
    state: "waiting",
    cancel: new AbortController(),
  };
}
