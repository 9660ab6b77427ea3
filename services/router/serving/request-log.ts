// The one line that the log gets of a request.
import type { Log } from "../../common/log.ts";
import type { ReceiptDraft } from "../request/receipt.ts";
import type { Ending } from "../relay/relay.ts";

export function logEnded(log: Log, draft: ReceiptDraft, ending: Ending | undefined, error: unknown): void {
  // Of two attempts side by side, the one that answered.
  const leg = draft.legs.findLast(({ error }) => error === "") ?? draft.legs.at(-1);
  // A field that is undefined is left out.
  const fields = {
    requestId: draft.requestId,
    clientId: draft.clientId,
    tenant: draft.tenant || undefined,
    path: draft.path,
    model: draft.model,
    stream: draft.stream,
    outcome: draft.outcome,
    status: draft.status,
    prefill: leg?.prefillInstanceId,
    decode: leg?.decodeInstanceId,
    legId: leg?.legId,
    queueMs: rounded(draft.queueMs),
    ttftMs: rounded(draft.ttftMs),
    totalMs: rounded(draft.totalMs),
    promptTokens: ending?.promptTokens,
    completionTokens: ending?.completionTokens,
    cachedTokens: ending?.cachedTokens,
    finish: ending?.finishReasons.join(","),
    bytes: draft.bodyBytes,
    legs: draft.legs.length > 1 ? draft.legs.length : undefined,
    fallbacks: draft.fallbacks.join(", ") || undefined,
    errorCode: draft.errorCode || undefined,
  };
  // What the engine refused is the client's to look at; the rest is ours, with the whole chain of causes.
  if (draft.outcome !== "failed" || draft.errorCode === "engine_refused") log.info("request ended", fields);
  else log[draft.errorCode === "internal" ? "error" : "warn"]("request ended", { ...fields, error });
}

function rounded(ms: number): number {
  return Math.round(ms * 10) / 10;
}
