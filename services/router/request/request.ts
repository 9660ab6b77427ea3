// The input and output of the relay.
import type { LegPath } from "../../kv/connector.ts";

/** One checked and admitted request. */
export interface RelayRequest {
  /** Public: "chatcmpl-..." or "cmpl-...". */
  readonly id: string;
  readonly path: LegPath;
  readonly model: string;
  /** The client's body, byte for byte: valid UTF-8. */
  readonly body: Buffer;
  readonly stream: boolean;
  /** Greedy, or sampled with a seed: a deterministic engine gives the same answer again. */
  readonly repeatable?: boolean;
  /** `n`. */
  readonly choices: number;
  /** Limits the tokens of each choice. Absent: the model's length limits them. */
  readonly maxTokens?: number;
  /** Length of the prompt list, else 1. */
  readonly prompts: number;
  readonly promptIsList: boolean;
  /** The client asked for the usage chunk. */
  readonly includeUsage: boolean;
  /** When it must have ended, by the relay's clock. */
  readonly deadlineMs?: number;
  readonly createdUnixS: number;
  /** Whether it fails with an error rather than using a fallback. */
  readonly strict?: boolean;
  /** The router's own, to test a pair. */
  readonly probe?: boolean;
}

/** Bytes of a body per prompt token, about as in English text. */
const BYTES_PER_TOKEN = 4;

/**
 * Estimates the tokens of one prompt of the request from the size of the body, before any engine has counted them: only
 * to compare loads and to recognize short prompts.
 */
export function estimateTokens({ body, prompts }: RelayRequest): number {
  return Math.ceil(body.length / BYTES_PER_TOKEN / prompts);
}

/** Receives the answer. */
export interface AnswerSink {
  /** Called once, before the first bytes. The status can't change after that. */
  start(): void;
  /**
   * Takes whole SSE events without `[DONE]` or, for a non-streaming answer, the JSON body.
   * @returns False if the sink is full. The relay then holds the legs back until `onDrain`.
   */
  write(bytes: Buffer): boolean;
  /** Set by the relay. */
  onDrain: (() => void) | undefined;
}

/** How one choice of one prompt ended, in the figures of its usage. */
export interface AnswerEnd {
  /** In OpenAI's words, like `Ending.finishReasons`. */
  readonly finishReason: string;
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** Absent if the engine did not report it. */
  readonly cachedTokens?: number | undefined;
}

/** A whole answer, with the sums of its usage: over all choices, with every prompt counted once. */
export interface Ending extends Omit<AnswerEnd, "finishReason"> {
  /** By choice index, in OpenAI's words: `stop`, `length`, `tool_calls`, and vLLM's `abort`. */
  readonly finishReasons: readonly string[];
}
