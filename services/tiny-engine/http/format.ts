// The differences of the two endpoints in writing an answer; everything else is in answer.ts.
import type { TokenLogprobs } from "../engine.ts";

/** The unit that is written for one choice: one token, even to a client that reads slowly. */
export interface Delta {
  readonly index: number;
  readonly text: string;
  readonly tokens: readonly number[];
  readonly logprobs: readonly TokenLogprobs[];
  /** Set with the last delta. */
  readonly finish: AnswerFinish | null;
  /** The choice's first delta. */
  readonly first: boolean;
  readonly completionTokens: number;
}

export interface AnswerFinish {
  readonly reason: "stop" | "length";
  /** Stop string, stop token id, or null. */
  readonly stopReason: string | number | null;
  readonly kvTransferParams: Readonly<Record<string, unknown>> | null;
}

/** A whole choice, for answers that are not streamed. */
export interface WholeChoice {
  readonly index: number;
  readonly text: string;
  readonly tokens: readonly number[];
  readonly logprobs: readonly TokenLogprobs[];
  readonly finish: AnswerFinish;
}

export interface Usage {
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** Null unless the server is configured to report them. */
  readonly cachedTokens: number | null;
}

export interface AnswerFormat {
  /** Events before the first token of any choice. */
  opening(choiceCount: number): string[];
  event(delta: Delta): string;
  /** The event after the last choice, if usage was asked for. */
  usageEvent(usage: Usage): string;
  body(choices: readonly WholeChoice[], usage: Usage): string;
}

/** `"usage":{...}` of a whole answer. */
export function usageJson({ promptTokens, completionTokens, cachedTokens }: Usage): string {
  const details =
    cachedTokens === null
      ? "null"
      : `{"cached_tokens":${cachedTokens},"created_cache_tokens":null,"multimodal_tokens":null}`;
  return `"usage":{"prompt_tokens":${promptTokens},"total_tokens":${promptTokens + completionTokens},"completion_tokens":${completionTokens},"prompt_tokens_details":${details},"completion_tokens_details":null}`;
}

/** `"usage":{...}` of an SSE event, without the closing brace: chunks of the two endpoints end differently. */
export function usageHead(promptTokens: number, completionTokens: number): string {
  return `"usage":{"prompt_tokens":${promptTokens},"total_tokens":${promptTokens + completionTokens},"completion_tokens":${completionTokens}`;
}
