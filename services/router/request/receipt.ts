// What becomes of one request, as it becomes: written by rest/ and relay/, read by control/, which turns it into the
// Receipt of router.proto. Prompts and answers are never in it.

export interface LegDraft {
  /** Id of this attempt in both engines. */
  readonly legId: string;
  /** Which choice of the answer it is for. Several drafts with one index are attempts at the same choice. */
  readonly choiceIndex: number;
  /** Empty where decode served alone. */
  prefillInstanceId: string;
  /** Empty until one is picked: after prefill, where the connector has it so. */
  decodeInstanceId: string;
  /** When it began: since the request came. */
  readonly startedMs: number;
  /** The error that ended it, `code: message`. Empty where there was none. */
  error: string;
  promptTokens: number;
  completionTokens: number;
  cachedTokens?: number;
  kvBytes?: bigint;
  /** Until the decode slot was reserved; 0 where that came with the start. */
  reserveMs: number;
  /** Until prefill had answered. */
  prefillMs: number;
  /** From prefill's answer to the first token. */
  transferMs: number;
  /** From the first to the last token. */
  decodeMs: number;
}

export type RequestOutcome = "running" | "completed" | "cancelled" | "refused" | "failed";

export interface ReceiptDraft {
  /** The id that the client was given. */
  readonly requestId: string;
  /** The id that the client sent, for the log. */
  readonly clientId: string | undefined;
  readonly startedUnixMs: number;
  readonly path: string;
  readonly model: string;
  readonly stream: boolean;
  /** Whose share of the queue it takes. */
  readonly tenant: string;
  /** Lower ones are served first. */
  readonly priority: number;
  outcome: RequestOutcome;
  errorCode: string;
  error: string;
  /** HTTP status that the client got; 0 while it runs. */
  status: number;
  queueMs: number;
  ttftMs: number;
  totalMs: number;
  /** In the order of their start. Bounded by the choices of the request times the attempts at each. */
  readonly legs: LegDraft[];
  /** What was done otherwise than planned, such as `retry:prefill:instance_lost`. Bounded by FALLBACK_LIMIT. */
  readonly fallbacks: string[];
  bodyBytes: number;
}

/** A request that waits for a slot for long may be refused many times. */
export const FALLBACK_LIMIT = 128;

export interface ReceiptHead {
  readonly requestId: string;
  readonly clientId?: string | undefined;
  readonly startedUnixMs: number;
  readonly path: string;
  readonly model: string;
  readonly stream: boolean;
  readonly tenant?: string;
  readonly priority?: number;
}

export function createReceiptDraft(head: ReceiptHead): ReceiptDraft {
  return {
    requestId: head.requestId,
    clientId: head.clientId,
    startedUnixMs: head.startedUnixMs,
    path: head.path,
    model: head.model,
    stream: head.stream,
    tenant: head.tenant ?? "",
    priority: head.priority ?? 0,
    outcome: "running",
    errorCode: "",
    error: "",
    status: 0,
    queueMs: 0,
    ttftMs: 0,
    totalMs: 0,
    legs: [],
    fallbacks: [],
    bodyBytes: 0,
  };
}

export function createLegDraft(legId: string, choiceIndex: number, startedMs = 0): LegDraft {
  return {
    legId,
    choiceIndex,
    startedMs,
    prefillInstanceId: "",
    decodeInstanceId: "",
    error: "",
    promptTokens: 0,
    completionTokens: 0,
    reserveMs: 0,
    prefillMs: 0,
    transferMs: 0,
    decodeMs: 0,
  };
}
