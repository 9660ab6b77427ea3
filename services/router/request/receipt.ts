// The record of one request while it runs and after. rest/ and relay/ write it; control/ reads it and turns it into the
// Receipt of router.proto. It never holds prompts or answers.
import { randomBytes } from "node:crypto";

export class LegDraft {
  /** Id of this attempt in both engines. */
  readonly legId = randomBytes(16).toString("hex");
  /** The choice that it attempts. Several drafts with the same index are attempts at the same choice. */
  readonly choiceIndex: number;
  /** When it began, counted from the arrival of the request. */
  readonly startedMs: number;
  /** Empty if the leg is unpaired. */
  prefillInstanceId = "";
  /** Empty until one is picked, which some connectors require to happen after prefill. */
  decodeInstanceId = "";
  /** The error that ended it, `code: message`. Empty if it did not fail. */
  error = "";
  promptTokens = 0;
  completionTokens = 0;
  cachedTokens?: number;
  kvBytes?: bigint;
  /** Time until the decode slot was reserved; 0 if reservation and start were sent together. */
  reserveMs = 0;
  /** Time until prefill answered. */
  prefillMs = 0;
  /** Time from prefill's answer to the first token. */
  transferMs = 0;
  /** Time from the first to the last token. */
  decodeMs = 0;

  constructor(choiceIndex: number, startedMs = 0) {
    this.choiceIndex = choiceIndex;
    this.startedMs = startedMs;
  }
}

export type RequestOutcome = "running" | "completed" | "cancelled" | "refused" | "failed";

export interface ReceiptDraft {
  /** The id that the client got. */
  readonly requestId: string;
  /** The id that the client sent. */
  readonly clientId: string | undefined;
  readonly startedUnixMs: number;
  readonly path: string;
  readonly model: string;
  readonly stream: boolean;
  /** The tenant whose share of the queue it takes. */
  readonly tenant: string;
  /** Lower values are served first. */
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
  /** Its fallbacks, such as `retry:prefill:instance_lost`. Bounded by FALLBACK_LIMIT. */
  readonly fallbacks: string[];
  bodyBytes: number;
}

/** Bounds the fallbacks of a receipt, because a request may be retried and refused many times. */
export const FALLBACK_LIMIT = 128;

/** What a receipt says of its request from the start. */
export type ReceiptHead = Pick<
  ReceiptDraft,
  "requestId" | "clientId" | "startedUnixMs" | "path" | "model" | "stream" | "tenant" | "priority"
>;

// Field by field, because a spread costs 10 us here.
export function createReceiptDraft(head: ReceiptHead): ReceiptDraft {
  return {
    requestId: head.requestId,
    clientId: head.clientId,
    startedUnixMs: head.startedUnixMs,
    path: head.path,
    model: head.model,
    stream: head.stream,
    tenant: head.tenant,
    priority: head.priority,
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
