// Text, finish reason and usage out of the SSE events of one OpenAI stream. Off the REST path: only Generate parses.

export interface Usage {
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly cachedTokens: number | undefined;
}

export interface EventReader {
  /** Whole events in, new text out. */
  read(bytes: Buffer): string;
  readonly finishReason: string;
  readonly usage: Usage | undefined;
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
}

export function createEventReader(): EventReader {
  let finishReason = "";
  let usage: Usage | undefined;
  return {
    read(bytes) {
      let text = "";
      for (const line of bytes.toString("utf8").split("\n")) {
        // Comments, such as a keep-alive, begin with a colon.
        if (!line.startsWith("data:")) continue;
        const data = line.slice("data:".length).trim();
        if (data === "[DONE]" || data === "") continue;
        const chunk = JSON.parse(data) as Chunk;
        const choice = chunk.choices?.[0];
        text += choice?.text ?? choice?.delta?.content ?? "";
        if (choice?.finish_reason) finishReason = choice.finish_reason;
        if (chunk.usage) {
          usage = {
            promptTokens: chunk.usage.prompt_tokens ?? 0,
            completionTokens: chunk.usage.completion_tokens ?? 0,
            cachedTokens: chunk.usage.prompt_tokens_details?.cached_tokens,
          };
        }
      }
      return text;
    },
    get finishReason() {
      return finishReason;
    },
    get usage() {
      return usage;
    },
  };
}
