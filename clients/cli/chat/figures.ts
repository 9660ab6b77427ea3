// The figures of a turn: its times, and the KV cache that moved from prefill to decode for it.
import { bytesText } from "../../common/bytes-text.ts";
import type { RouterTarget } from "../router-target.ts";
import type { Turn } from "./ask.ts";

/** Bytes of KV that moved for a request; undefined if the router or its engines don't report them. Never rejects. */
export async function kvBytesOf({ url, token }: RouterTarget, requestId: string): Promise<number | undefined> {
  try {
    // Imported here, because the import takes a tenth of a second, and the first question should not wait for it.
    const { routerClient } = await import("../../client/router.ts");
    const { receipt } = await routerClient(url, token).getReceipt({ requestId }, { timeoutMs: 2_000 });
    const known = (receipt?.legs ?? []).filter((leg) => leg.kvBytes !== undefined);
    return known.length === 0 ? undefined : known.reduce((sum, leg) => sum + Number(leg.kvBytes), 0);
  } catch {
    return undefined;
  }
}

/** The figures of a turn, on one line. */
export function figures(turn: Turn, kvBytes: number | undefined): string {
  const parts: string[] = [];
  if (!Number.isNaN(turn.ttftMs)) parts.push(`TTFT ${turn.ttftMs.toFixed(0)} ms`);
  if (turn.tokens > 1 && turn.writingMs > 0)
    parts.push(`${((turn.tokens - 1) / (turn.writingMs / 1000)).toFixed(0)} tokens/s`);
  if (!Number.isNaN(turn.tokens)) parts.push(`${turn.tokens} ${turn.tokens === 1 ? "token" : "tokens"}`);
  if (kvBytes !== undefined) parts.push(`KV moved ${bytesText(kvBytes)}`);
  if (turn.stopped) parts.push("stopped");
  return parts.join(", ");
}
