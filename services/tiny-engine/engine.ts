// What an engine is asked, what it answers, and what it says of its model. Tokens are pushed, not pulled: with thousands of
// streams an async iterator per token costs more than making the token does.

// Which part of a request an engine computes, and how its KV moves. `none`: an engine that does both parts itself.
export const ROLES = ["none", "prefill", "decode"] as const;
export const CONNECTORS = ["none", "p2p-zmq", "nixl"] as const;

export type EngineRole = (typeof ROLES)[number];
export type ConnectorName = (typeof CONNECTORS)[number];

/** One message of a chat, as templates receive it. */
export interface Message {
  readonly role: string;
  readonly content: string;
}

/** Text to tokens and back, as far as the HTTP server needs it. */
export interface Tokenizer {
  readonly vocabularySize: number;
  /**
   * Special tokens are never read out of text: their names in a prompt are ordinary letters.
   * @param withStart Whether to put the token that begins a prompt in front, if the model has one.
   */
  encodePrompt(text: string, withStart: boolean): number[];
  /** Special tokens are written out by name. Broken UTF-8 becomes U+FFFD, as in vLLM. */
  decode(tokens: readonly number[]): string;
  /** A token's bytes. */
  bytes(token: number): Uint8Array;
  /** A token's text if it is valid UTF-8 by itself, null for a piece of a character. */
  text(token: number): string | null;
  isSpecial(token: number): boolean;
}

export interface ModelFacts {
  readonly name: string;
  readonly root: string;
  /** Prompt and answer together, in tokens. */
  readonly maxLength: number;
  /** As vLLM prints it: `vllm-<version>-<8 hex>`. */
  readonly fingerprint: string;
  /** Version of the served API, or of the engine if it has its own version. */
  readonly version: string;
  /** Whether answers can be held to a grammar. The sim takes the fields and ignores them. */
  readonly takesGrammars: boolean;
}

export interface SequenceRequest {
  /** Engine-level id as vLLM makes it, child index and prompt index included; the KV travels under it. */
  readonly id: string;
  readonly prompt: readonly number[];
  /** Index among the `n` choices of its prompt. */
  readonly choice: number;
  readonly choiceCount: number;
  readonly sampling: Sampling;
  /** `kv_transfer_params` of the body, unread: its meaning belongs to the connector. */
  readonly kvTransferParams: Readonly<Record<string, unknown>> | null;
  /** Alternatives for each prompt token whose logprobs are wanted too. Null: not wanted. */
  readonly promptLogprobs: number | null;
  /** Faults that pace this sequence. */
  readonly pace: Pace | null;
}

export interface Pace {
  readonly extraMsPerToken: number;
  /** No token follows this many. Infinity: never stalls. */
  readonly stallAfterTokens: number;
}

export interface Sampling {
  /** 0 is greedy. */
  readonly temperature: number;
  /** Above 0, to 1. */
  readonly topP: number;
  /** 0: no limit. */
  readonly topK: number;
  /** 0 to 1. */
  readonly minP: number;
  /** -2 to 2, as the next. */
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  /** Above 0. 1: none. */
  readonly repetitionPenalty: number;
  /** Added to logits, by token. */
  readonly logitBias: ReadonlyMap<number, number> | null;
  /** Null: random when the temperature is above 0. */
  readonly seed: number | null;
  /** At least 1, already clamped to the length that the prompt leaves. */
  readonly maxTokens: number;
  readonly minTokens: number;
  readonly ignoreEos: boolean;
  readonly stopTokenIds: ReadonlySet<number> | null;
  /** Alternatives per output token. Null: no logprobs; 0: only the chosen token's. */
  readonly logprobs: number | null;
}

export interface TokenSink {
  /**
   * One sampled token; `finish` comes with the last.
   * Returns true when the text met a stop string, which ends the sequence as "stop".
   */
  token(token: number, finish: Finish | null, logprobs: TokenLogprobs | null): boolean;
  /** The sequence ends without an answer. Not called after `finish`. */
  fail(failure: EngineFailure): void;
}

export interface Finish {
  readonly reason: "stop" | "length";
  /** Stop string, stop token id, or null for end of text or length. */
  readonly stopReason: string | number | null;
  readonly kvTransferParams: Readonly<Record<string, unknown>> | null;
}

export interface TokenLogprobs {
  readonly logprob: number;
  /** 1 is the likeliest. */
  readonly rank: number;
  /** Likeliest first; as many as were asked for. */
  readonly top: readonly { readonly token: number; readonly logprob: number; readonly rank: number }[];
}

/** In the form of the error body. */
export interface EngineFailure {
  readonly status: number;
  readonly type: string;
  readonly message: string;
  readonly param: string | null;
}

export interface SequenceHandle {
  /** Prompt tokens found in the prefix cache. Known once the first token is generated. */
  readonly cachedTokens: number;
  /** Logprobs of the prompt itself, one per prompt token; the first has none. Read after the first token. */
  promptLogprobs(alternatives: number): readonly (TokenLogprobs | null)[];
  /** Stops the sequence and frees its KV. Harmless after its end. */
  abort(): void;
}
