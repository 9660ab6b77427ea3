// What is told of a turn beside its text: its times, and the KV cache that moved from prefill to decode for it.
import { bytesText } from "../../common/bytes-text.ts";
import type { Turn } from "./ask.ts";

/** As RouterService.GetReceipt tells it in JSON; 64-bit numbers are strings there. */
interface Receipt {
  readonly legs?: readonly { readonly kvBytes?: string; readonly promptTokens?: number; readonly error?: string }[];
}

/** Bytes of KV that moved for a request; undefined where the router or its engines don't say. Never rejects. */
export async function kvBytesOf(url: string, token: string, requestId: string): Promise<number | undefined> {
  try {
    const response = await fetch(`${url}/tandem.router.v1.RouterService/GetReceipt`, {
      method: "POST",
      headers: { "content-type": "application/json", ...(token === "" ? {} : { authorization: `Bearer ${token}` }) },
      body: JSON.stringify({ requestId }),
      signal: AbortSignal.timeout(2_000),
    });
    if (response.status !== 200) return undefined;
    const { receipt } = (await response.json()) as { receipt?: Receipt };
    const known = (receipt?.legs ?? []).filter((leg) => leg.kvBytes !== undefined);
    return known.length === 0 ? undefined : known.reduce((sum, leg) => sum + Number(leg.kvBytes), 0);
  } catch {
    return undefined;
  }
}

/** One line. */
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
