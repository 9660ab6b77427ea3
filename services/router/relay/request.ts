// What the relay is given and gives back.
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
  /** `n`. */
  readonly choices: number;
  /** Length of the prompt list, else 1. */
  readonly prompts: number;
  readonly promptIsList: boolean;
  /** The client asked for the usage chunk. */
  readonly includeUsage: boolean;
  /** When it must have ended, by the relay's clock. */
  readonly deadlineMs?: number;
  readonly createdUnixS: number;
}

/** Where the answer goes. */
export interface AnswerSink {
  /** Once, when the first bytes are there: from now on the status stands. */
  start(): void;
  /**
   * Whole SSE events without `[DONE]` or, not streaming, the JSON body.
   * @returns False: full. The relay holds the legs back until `onDrain`.
   */
  write(bytes: Buffer): boolean;
  /** Set by the relay. */
  onDrain: (() => void) | undefined;
}

/** A whole answer, in the figures of its usage. */
export interface Ending {
  /** By choice index, in OpenAI's words: `stop`, `length`, `tool_calls`, and vLLM's `abort`. */
  readonly finishReasons: readonly string[];
  /** Every prompt once. */
  readonly promptTokens: number;
  /** Of all choices. */
  readonly completionTokens: number;
  /** Absent where nobody said. */
  readonly cachedTokens?: number;
}

/** In milliseconds. */
export interface RelayLimits {
  /** How often one choice is tried again before its first byte. 0 turns retries off. */
  readonly retryLimit: number;
  readonly prefillTimeoutMs: number;
  /** Longest silence of a decode leg. */
  readonly stallMs: number;
  /** Longest wait for a busy instance. Default 30,000. */
  readonly queueTimeoutMs?: number;
  /** Choices times prompts of one request. Default 64. */
  readonly legsLimit?: number;
}
