// Where the time of a request went, for `curl -i` and a browser's network panel (W3C Server Timing). Milliseconds.
import type { ReceiptDraft } from "../request/receipt.ts";

/** What is known of the draft now. Of several legs, the one that took longest in each part. */
export function serverTiming(draft: ReceiptDraft): string {
  let reserveMs = 0;
  let prefillMs = 0;
  let transferMs = 0;
  for (const leg of draft.legs) {
    if (leg.error !== "") continue;
    reserveMs = Math.max(reserveMs, leg.reserveMs);
    prefillMs = Math.max(prefillMs, leg.prefillMs);
    transferMs = Math.max(transferMs, leg.transferMs);
  }
  let text = `queue;dur=${draft.queueMs.toFixed(1)}`;
  if (reserveMs > 0) text += `, reserve;dur=${reserveMs.toFixed(1)}`;
  if (prefillMs > 0) text += `, prefill;dur=${prefillMs.toFixed(1)}`;
  // The first token of a non-streaming response is not observed: the time after prefill is all of decode.
  if (transferMs > 0) text += `, ${draft.stream ? "transfer" : "decode"};dur=${transferMs.toFixed(1)}`;
  return text;
}
