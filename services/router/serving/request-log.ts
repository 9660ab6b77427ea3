// The one line that the log gets of a request.
import type { Log } from "../../common/log.ts";
import type { ReceiptDraft } from "../request/receipt.ts";
import type { Ending } from "../relay/relay.ts";

export function logEnded(log: Log, draft: ReceiptDraft, ending: Ending | undefined, error: unknown): void {
  const leg = draft.legs.at(-1);
  const fields: Record<string, unknown> = {
    requestId: draft.requestId,
    ...(draft.clientId === undefined ? {} : { clientId: draft.clientId }),
    ...(draft.tenant === "" ? {} : { tenant: draft.tenant }),
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
    ...(draft.legs.length > 1 ? { legs: draft.legs.length } : {}),
    ...(draft.fallbacks.length > 0 ? { fallbacks: draft.fallbacks.join(", ") } : {}),
  };
  if (draft.outcome !== "failed") {
    if (draft.errorCode !== "") fields["errorCode"] = draft.errorCode;
    log.info("request ended", fields);
    return;
  }
  fields["errorCode"] = draft.errorCode;
  // What the engine refused is the client's to look at; the rest is ours, with the whole chain of causes.
  if (draft.errorCode === "engine_refused") log.info("request ended", fields);
  else if (draft.errorCode === "internal") log.error("request ended", { ...fields, error });
  else log.warn("request ended", { ...fields, error });
}

function rounded(ms: number): number {
  return Math.round(ms * 10) / 10;
}
