// One turn of a chat: the conversation goes out, the answer comes back as it is written, and its figures follow.
import { bytesText } from "../../common/bytes-text.ts";
import type { ChatRequest, OpenAiClient } from "../../client/openai.ts";
import type { RouterTarget } from "../router-target.ts";

export interface Turn {
  readonly requestId: string;
  readonly text: string;
  /** From sending the request to the first text, in milliseconds. NaN if there was no text. */
  readonly ttftMs: number;
  /** From the first text to the last, in milliseconds. */
  readonly writingMs: number;
  /** NaN if the answer was stopped. */
  readonly tokens: number;
  readonly stopped: boolean;
}

/**
 * @param stop Ends the answer; the text until then is kept.
 * @throws TandemError
 */
export async function ask(
  client: OpenAiClient,
  request: ChatRequest,
  stop: AbortSignal,
  onText: (text: string) => void,
): Promise<Turn> {
  const sentMs = performance.now();
  let firstMs = Number.NaN;
  let lastMs = Number.NaN;
  let text = "";
  let tokens = Number.NaN;
  let requestId = "";
  try {
    const body = { ...request, stream_options: { include_usage: true } };
    const stream = await client.streamChat(body, { signal: stop });
    requestId = stream.requestId;
    for await (const { choices, usage } of stream) {
      tokens = usage?.completion_tokens ?? tokens;
      const piece = choices[0]?.delta.content ?? "";
      if (piece === "") continue;
      lastMs = performance.now();
      if (text === "") firstMs = lastMs;
      text += piece;
      onText(piece);
    }
  } catch (error) {
    if (!stop.aborted) throw error;
  }
  return { requestId, text, tokens, ttftMs: firstMs - sentMs, writingMs: lastMs - firstMs, stopped: stop.aborted };
}

/** Bytes of KV that moved for a request; undefined if the router or its engines don't report them. Never rejects. */
export async function kvBytesOf(target: RouterTarget, requestId: string): Promise<number | undefined> {
  try {
    // Imported here, because the import takes a tenth of a second, and the first question should not wait for it.
    const { withRouter } = await import("../router-calls.ts");
    const ask = { requestId };
    const { receipt } = await withRouter(target, (router) => router.getReceipt(ask, { timeoutMs: 2_000 }));
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
