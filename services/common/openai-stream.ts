// Reads an OpenAI event stream as a client does: text, finish reason, usage and errors. The hot path has its own
// readers, on bytes: engine/sse.ts and decode/answer-stream.ts.
import { createParser } from "eventsource-parser";

/** The part of the first choice's answer that one event carries. */
export interface StreamPart {
  /** Empty when the event carries none. */
  readonly text: string;
  readonly finishReason: string | undefined;
  readonly usage: ReturnType<typeof usageOf> | undefined;
  /** The message of an error event. */
  readonly error: string | undefined;
}

interface Chunk {
  readonly choices?: readonly {
    readonly text?: string;
    readonly delta?: { readonly content?: string | null };
    readonly finish_reason?: string | null;
  }[];
  readonly usage?: {
    readonly prompt_tokens?: number;
    readonly completion_tokens?: number;
    readonly prompt_tokens_details?: { readonly cached_tokens?: number } | null;
  } | null;
  readonly error?: { readonly message?: string };
}

/**
 * @param on `onDone`: at `[DONE]`.
 * @returns A function that takes the stream's text as it arrives. It throws a SyntaxError at an event that is not JSON.
 */
export function createStreamReader(on: { onPart(part: StreamPart): void; onDone?(): void }): (piece: string) => void {
  const parser = createParser({
    onEvent({ data }) {
      if (data === "[DONE]") return on.onDone?.();
      const { choices, usage, error } = JSON.parse(data) as Chunk;
      const choice = choices?.[0];
      on.onPart({
        text: choice?.text ?? choice?.delta?.content ?? "",
        finishReason: choice?.finish_reason ?? undefined,
        usage: usage ? usageOf(usage) : undefined,
        error: error === undefined ? undefined : (error.message ?? "an error event"),
      });
    },
  });
  return (piece) => parser.feed(piece);
}

function usageOf(usage: NonNullable<Chunk["usage"]>) {
  return {
    promptTokens: usage.prompt_tokens ?? 0,
    completionTokens: usage.completion_tokens ?? 0,
    cachedTokens: usage.prompt_tokens_details?.cached_tokens,
  };
}
