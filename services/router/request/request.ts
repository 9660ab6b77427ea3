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

export const REPLAY_MODES = ["never", "proven", "always"] as const;
export type ReplayMode = (typeof REPLAY_MODES)[number];

/** In milliseconds, where nothing else is said. */
export interface RelayLimits {
  /** How often one choice is tried again before its first byte. 0 turns retries off. */
  readonly retryLimit: number;
  /** Which broken streams are written again on another pair: on engines of which it is proven that they repeat themselves, or on all. */
  readonly replayMode: ReplayMode;
  /** From the failure to where the client's part of the stream has been written again. */
  readonly replayTimeoutMs: number;
  /** Retries of the whole router, for each request that comes: 0.2 is one for five. */
  readonly retryRatio: number;
  /** Retries that are there in any second, however few requests come. */
  readonly retryPerS: number;
  /** For a decode instance to answer a reservation. */
  readonly reserveTimeoutMs: number;
  /** Longest prefill of one prompt, whatever its length. */
  readonly prefillTimeoutMs: number;
  /** Allowed to every prompt, before its length is counted. */
  readonly prefillFloorMs: number;
  /** How many times longer than the observed rate promises a prefill may take. 0: only the fixed limit holds. */
  readonly prefillSlack: number;
  /** From prefill's answer to the first token of a stream: KV transfer and first decode step. */
  readonly transferTimeoutMs: number;
  /** From the admission of a request to the first token of a stream, all attempts together. */
  readonly firstTokenTimeoutMs: number;
  /** Allowed to every answer in one piece, before its tokens are counted. */
  readonly answerFloorMs: number;
  /** How many times longer than at the slowest pace seen on its instance an answer in one piece may take. 0: unbounded. */
  readonly answerSlack: number;
  /** Longest silence between tokens of a stream. */
  readonly stallMs: number;
  /** Longest wait for a busy instance. */
  readonly queueTimeoutMs: number;
  /** Choices times prompts of one request. */
  readonly legsLimit: number;
  /** Prompts that are surely shorter go to decode alone, where the connector allows it. 0: none. In tokens. */
  readonly directTokens: number;
}
