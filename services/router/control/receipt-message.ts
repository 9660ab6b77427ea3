// A receipt as RouterService reports it.
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Outcome, type ReceiptSchema } from "#gen/tandem/router/v1/router_pb.js";
import type { ReceiptDraft } from "../request/receipt.ts";

const OUTCOMES = {
  running: Outcome.UNSPECIFIED,
  completed: Outcome.COMPLETED,
  cancelled: Outcome.CANCELLED,
  refused: Outcome.REFUSED,
  failed: Outcome.FAILED,
} as const;

export function receiptMessage(draft: ReceiptDraft): MessageInitShape<typeof ReceiptSchema> {
  return {
    requestId: draft.requestId,
    startedUnixMs: BigInt(draft.startedUnixMs),
    path: draft.path,
    model: draft.model,
    outcome: OUTCOMES[draft.outcome],
    errorCode: draft.errorCode,
    error: draft.error,
    status: draft.status,
    stream: draft.stream,
    queueMs: draft.queueMs,
    ttftMs: draft.ttftMs,
    totalMs: draft.totalMs,
    fallbacks: [...draft.fallbacks],
    tenant: draft.tenant,
    priority: draft.priority,
    bodyBytes: BigInt(draft.bodyBytes),
    legs: draft.legs.map((leg) => ({ ...leg })),
  };
}
