// One sequence in an engine: its request, the sink of its answer, and its progress.
import type { SequenceRequest, TokenSink } from "./engine.ts";

/** Times are milliseconds of the engine's clock; 0 before they are known. */
export class Sequence {
  readonly request: SequenceRequest;
  readonly sink: TokenSink;
  readonly arrivedMs: number;
  scheduledMs = 0;
  firstTokenMs = 0;
  lastTokenMs = 0;
  state: "waiting" | "running" | "transferring" | "ended" = "waiting";
  /** Tokens of the answer so far. */
  outputCount = 0;
  /** Prompt tokens that were not computed for this sequence. */
  cachedTokens = 0;
  preemptions = 0;
  /** Its KV came from another engine, or is about to. */
  isTransferred = false;
  /** Stops a transfer that this sequence waits for. */
  readonly cancel = new AbortController();

  constructor(request: SequenceRequest, sink: TokenSink, arrivedMs: number) {
    this.request = request;
    this.sink = sink;
    this.arrivedMs = arrivedMs;
  }
}
