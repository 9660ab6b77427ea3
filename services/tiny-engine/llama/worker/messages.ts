// The messages between the engine and its worker thread. Commands take effect in the order they are sent.
import type { SequenceRequest, TokenLogprobs } from "../../engine.ts";
import type { SamplingParams } from "../sampling.ts";

export interface WorkerStart {
  /** The GGUF file. Transferred, not copied. */
  readonly file: ArrayBuffer;
  /** Bound of the KV cache. */
  readonly kvBytes: number;
}

export type Command =
  | Add
  | { readonly kind: "drop"; readonly id: number }
  | { readonly kind: "hang"; readonly hung: boolean };

/** A sequence to run. The engine has made sure that there are blocks for all its tokens. */
export interface Add extends Pick<SequenceRequest, "prompt" | "promptLogprobs" | "pace"> {
  readonly kind: "add";
  readonly id: number;
  readonly sampling: SamplingParams;
  /** Tokens that end the answer. */
  readonly ends: ReadonlySet<number>;
  /** KV of the whole prompt, checked, packed as in kv-rows.ts. Null: to be computed. */
  readonly kv: readonly Uint8Array[] | null;
  /** Whether to send out the prompt's KV. */
  readonly givesKv: boolean;
}

/** The result of one round. */
export interface Report {
  readonly kind: "report";
  /** Rows computed, of prompts and of answers. */
  readonly rows: number;
  /** Sent before the tokens of the same round. */
  readonly kv: readonly GivenKv[];
  readonly tokens: readonly GivenToken[];
}

export interface GivenKv {
  readonly id: number;
  /** The next blocks of this sequence, in order. Transferred. */
  readonly blocks: readonly Uint8Array<ArrayBuffer>[];
  /** That was the last of the prompt. */
  readonly last: boolean;
}

export interface GivenToken {
  readonly id: number;
  readonly token: number;
  /** Set with the last token: the sequence is over and its blocks are free. */
  readonly finish: "stop" | "length" | null;
  readonly logprobs: TokenLogprobs | null;
  /** Sent with the first token, if requested. */
  readonly promptLogprobs: readonly (TokenLogprobs | null)[] | null;
}

export type Answer =
  /** The model is in memory. */
  | { readonly kind: "ready" }
  /** Why the model can't be run, for people. */
  | { readonly kind: "unfit"; readonly message: string }
  | Report;
