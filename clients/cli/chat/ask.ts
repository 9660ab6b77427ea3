// One turn: the conversation goes out, the answer comes back as it is written.
import type { ChatRequest, OpenAiClient } from "../../client/openai.ts";

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
