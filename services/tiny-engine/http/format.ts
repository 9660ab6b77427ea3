// What the two endpoints write alike, and the interface to what they don't. How an answer runs is in answer.ts.
import type { Finish, SequenceHandle, TokenLogprobs } from "../engine.ts";
import type { EngineCore } from "../engine-core.ts";
import { promptLogprobsJson } from "./logprobs.ts";
import type { StreamChoice } from "./sampling.ts";

/** A whole choice, for answers that are not streamed. */
export interface WholeChoice {
  readonly index: number;
  readonly text: string;
  readonly tokens: readonly number[];
  readonly logprobs: readonly TokenLogprobs[];
  readonly finish: Finish;
}

/** The unit that is written for one choice: one token, even to a client that reads slowly. */
export interface Delta extends Omit<WholeChoice, "finish"> {
  /** Set with the last delta. */
  readonly finish: Finish | null;
  /** The choice's first delta. */
  readonly first: boolean;
  readonly completionTokens: number;
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

/** @param chunkUsageEnd Last field of the usage in an event, which only chat has. */
export function commonFormat(
  engine: EngineCore,
  id: string,
  handles: readonly SequenceHandle[],
  { stream, chunkObject, chunkUsageEnd }: { stream: StreamChoice; chunkObject: string; chunkUsageEnd: string },
) {
  const created = Math.floor(Date.now() / 1000);
  const head = (object: string): string =>
    `{"id":${JSON.stringify(id)},"object":"${object}","created":${created},"model":${JSON.stringify(engine.model.name)},"choices":[`;
  const chunkHead = `data: ${head(chunkObject)}`;
  const fingerprint = `"system_fingerprint":${JSON.stringify(engine.model.fingerprint)}`;
  const chunkUsage = (promptTokens: number, completionTokens: number): string =>
    `,${usageHead(promptTokens, completionTokens)}${chunkUsageEnd}}`;
  return {
    head,
    chunkHead,
    fingerprint,
    chunkUsage,
    /** The end of an event, behind its choice. */
    chunkTail(promptTokens: number, { completionTokens, finish }: Delta): string {
      if (stream.continuousUsage) return `]${chunkUsage(promptTokens, completionTokens)}}\n\n`;
      return finish !== null && !stream.includeUsage ? `],${fingerprint}}\n\n` : "]}\n\n";
    },
    usageEvent({ promptTokens, completionTokens, cachedTokens }: Usage): string {
      const details = cachedTokens === null ? "" : `,"prompt_tokens_details":{"cached_tokens":${cachedTokens}}`;
      return `${chunkHead}],${usageHead(promptTokens, completionTokens)}${details}},${fingerprint}}\n\n`;
    },
    /** @param alternatives Null: not wanted. */
    promptLogprobs(prompt: readonly number[], choice: number, alternatives: number | null): string {
      if (alternatives === null) return "null";
      return promptLogprobsJson(engine.tokenizer, prompt, handles[choice]!.promptLogprobs(alternatives));
    },
    /** The end of a whole answer. */
    bodyTail(choices: readonly WholeChoice[]): string {
      const params = choices.map(({ finish }) => finish.kvTransferParams).filter((given) => given !== null);
      return `"kv_transfer_params":${JSON.stringify(params.at(-1) ?? null)},"ec_transfer_params":null,"metrics":null}`;
    },
  };
}

/** `"usage":{...}` of a whole answer. */
export function usageJson({ promptTokens, completionTokens, cachedTokens }: Usage): string {
  const details =
    cachedTokens === null
      ? "null"
      : `{"cached_tokens":${cachedTokens},"created_cache_tokens":null,"multimodal_tokens":null}`;
  return `${usageHead(promptTokens, completionTokens)},"prompt_tokens_details":${details},"completion_tokens_details":null}`;
}

function usageHead(promptTokens: number, completionTokens: number): string {
  return `"usage":{"prompt_tokens":${promptTokens},"total_tokens":${promptTokens + completionTokens},"completion_tokens":${completionTokens}`;
}

/** A list of token ids, if they were asked for. */
export function idsJson(asked: boolean, tokens: readonly number[]): string {
  return asked ? JSON.stringify(tokens) : "null";
}
