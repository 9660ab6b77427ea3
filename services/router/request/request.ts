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
  /** Greedy, or sampled with a seed: an engine that works alike each time gives the same answer again. */
  readonly repeatable?: boolean;
  /** `n`. */
  readonly choices: number;
  /** Tokens that each choice may have. Absent: as many as the model has room for. */
  readonly maxTokens?: number;
  /** Length of the prompt list, else 1. */
  readonly prompts: number;
  readonly promptIsList: boolean;
  /** The client asked for the usage chunk. */
  readonly includeUsage: boolean;
  /** When it must have ended, by the relay's clock. */
  readonly deadlineMs?: number;
  readonly createdUnixS: number;
  /** An error rather than anything done otherwise than planned. */
  readonly strict?: boolean;
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

/** How one choice of one prompt ended, in the figures of its usage. */
export interface AnswerEnd {
  /** In OpenAI's words, as `Ending.finishReasons`. */
  readonly finishReason: string;
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** Absent where nobody said. */
  readonly cachedTokens?: number | undefined;
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
