// POST /v1/completions: reads the request and writes its answers, byte for byte as vLLM 0.32 does.
import type { SequenceHandle } from "../engine.ts";
import type { EngineCore } from "../engine-core.ts";
import type { AnswerPlan } from "./answer.ts";
import type { Json, JsonObject } from "./body.ts";
import { badRequest, badValue } from "./exchange.ts";
import { usageHead, usageJson, type AnswerFormat, type Delta, type Usage, type WholeChoice } from "./format.ts";
import { CompletionLogprobs, promptLogprobsJson } from "./logprobs.ts";
import { checkModel, clampMaxTokens, readChoices, readSamplingFields, readStream } from "./sampling.ts";

const DEFAULT_MAX_TOKENS = 16;

/**
 * @param requestId From the header, if there was one.
 * @throws HttpError if vLLM would refuse the request.
 */
export function planCompletions(
  engine: EngineCore,
  body: JsonObject,
  requestId: string | null,
  newId: () => string,
  reportCached: boolean,
): AnswerPlan {
  const fields = readSamplingFields(body, { prompt: "any", suffix: "string", logprobs: "integer" });
  const stream = readStream(fields);
  const texts = readPrompts(fields.prompt);
  checkModel(fields.model, engine.model.name);
  if (fields.suffix) throw badRequest("suffix is only supported for models with FIM completion rendering", "suffix");
  const { tokenizer, model } = engine;
  const tokens = texts.map((prompt) =>
    typeof prompt === "string"
      ? tokenizer.encodePrompt(prompt, fields.add_special_tokens !== false)
      : checkIds(prompt, tokenizer.vocabularySize),
  );
  const limits = tokens.map((prompt) =>
    clampMaxTokens(fields.max_tokens, DEFAULT_MAX_TOKENS, prompt.length, model.maxLength),
  );
  const choices = readChoices(fields, Math.min(...limits), fields.logprobs, engine);
  const id = `cmpl-${requestId ?? fields.request_id ?? newId()}`;
  const echo = fields.echo ?? false;
  const promptLogprobs = fields.prompt_logprobs ?? (echo && fields.logprobs !== null ? fields.logprobs : null);
  return {
    prompts: tokens.map((prompt, index) => ({ id: `${id}-${index}`, tokens: prompt })),
    ...choices,
    stream,
    promptLogprobs,
    reportCached,
    format: (handles) =>
      new CompletionsFormat(engine, id, handles, {
        n: choices.n,
        tokens,
        texts: texts.map((prompt) => (typeof prompt === "string" ? prompt : tokenizer.decode(prompt))),
        echo,
        logprobs: fields.logprobs,
        promptLogprobs,
        returnTokenIds: fields.return_token_ids ?? false,
        includeUsage: stream.includeUsage,
        continuousUsage: stream.continuousUsage,
        reportCached,
      }),
  };
}

/** One string, a list of strings, one list of token ids, or a list of such lists. */
function readPrompts(prompt: Json): (string | readonly number[])[] {
  const missing = badValue("Either prompt or prompt_embeds must be provided and non-empty.", "prompt");
  if (prompt === null || prompt === "" || (Array.isArray(prompt) && prompt.length === 0)) throw missing;
  if (typeof prompt === "string") return [prompt];
  if (!Array.isArray(prompt))
    throw badRequest("prompt must be a string, array of strings, array of tokens, or array of token arrays", "prompt");
  if (prompt.every((item) => typeof item === "number")) return [prompt];
  return prompt.map((item: Json) => {
    if (typeof item === "string" ? item === "" : Array.isArray(item) && item.length === 0) throw missing;
    if (typeof item === "string" || (Array.isArray(item) && item.every((id) => typeof id === "number")))
      return item as string | number[];
    throw badRequest("prompt must be a string, array of strings, array of tokens, or array of token arrays", "prompt");
  });
}

function checkIds(ids: readonly number[], vocabularySize: number): readonly number[] {
  const outside = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabularySize);
  if (outside !== undefined) throw badRequest(`Token id ${outside} is out of vocabulary`);
  return ids;
}

interface FormatOptions {
  readonly n: number;
  readonly tokens: readonly (readonly number[])[];
  readonly texts: readonly string[];
  readonly echo: boolean;
  readonly logprobs: number | null;
  readonly promptLogprobs: number | null;
  readonly returnTokenIds: boolean;
  readonly includeUsage: boolean;
  readonly continuousUsage: boolean;
  readonly reportCached: boolean;
}

class CompletionsFormat implements AnswerFormat {
  readonly #engine: EngineCore;
  readonly #handles: readonly SequenceHandle[];
  readonly #options: FormatOptions;
  readonly #head: string;
  readonly #fingerprint: string;
  /** One per choice, if logprobs were asked for: offsets count through the whole answer. */
  readonly #logprobs: readonly CompletionLogprobs[];

  constructor(engine: EngineCore, id: string, handles: readonly SequenceHandle[], options: FormatOptions) {
    this.#engine = engine;
    this.#handles = handles;
    this.#options = options;
    const created = Math.floor(Date.now() / 1000);
    this.#head = `{"id":${JSON.stringify(id)},"object":"text_completion","created":${created},"model":${JSON.stringify(engine.model.name)},"choices":[`;
    this.#fingerprint = `"system_fingerprint":${JSON.stringify(engine.model.fingerprint)}`;
    this.#logprobs =
      options.logprobs === null ? [] : handles.map(() => new CompletionLogprobs(engine.tokenizer, options.logprobs!));
  }

  opening(): string[] {
    return [];
  }

  event(delta: Delta): string {
    const { echo, returnTokenIds, includeUsage, continuousUsage, n } = this.#options;
    const prompt = Math.floor(delta.index / n);
    const { finish } = delta;
    const text = echo && delta.first ? this.#options.texts[prompt]! + delta.text : delta.text;
    // vLLM lists the prompt's ids in the first chunk of an echo too, whether asked for or not.
    const promptIds = delta.first && (returnTokenIds || echo) ? JSON.stringify(this.#options.tokens[prompt]) : "null";
    const ids = returnTokenIds ? JSON.stringify(delta.tokens) : "null";
    const tail = continuousUsage
      ? `,${usageHead(this.#options.tokens[prompt]!.length, delta.completionTokens)}}`
      : finish !== null && !includeUsage
        ? `,${this.#fingerprint}`
        : "";
    return (
      `data: ${this.#head}{"index":${delta.index},"text":${JSON.stringify(text)},"logprobs":${this.#logprobsJson(delta, prompt, delta.first)},` +
      `"finish_reason":${finish === null ? "null" : `"${finish.reason}"`},"stop_reason":${finish === null ? "null" : JSON.stringify(finish.stopReason)},` +
      `"prompt_token_ids":${promptIds},"token_ids":${ids}}]${tail}}\n\n`
    );
  }

  usageEvent({ promptTokens, completionTokens, cachedTokens }: Usage): string {
    const details = cachedTokens === null ? "" : `,"prompt_tokens_details":{"cached_tokens":${cachedTokens}}`;
    return `data: ${this.#head}],${usageHead(promptTokens, completionTokens)}${details}},${this.#fingerprint}}\n\n`;
  }

  body(choices: readonly WholeChoice[], usage: Usage): string {
    const kvTransferParams =
      choices
        .map(({ finish }) => finish.kvTransferParams)
        .filter((params) => params !== null)
        .at(-1) ?? null;
    return (
      `${this.#head}${choices.map((choice) => this.#choiceJson(choice)).join(",")}],"service_tier":null,${this.#fingerprint},` +
      `${usageJson(usage)},"kv_transfer_params":${JSON.stringify(kvTransferParams)},"ec_transfer_params":null,"metrics":null}`
    );
  }

  #choiceJson(choice: WholeChoice): string {
    const { n, echo, texts, tokens, returnTokenIds, promptLogprobs } = this.#options;
    const prompt = Math.floor(choice.index / n);
    const text = echo ? texts[prompt]! + choice.text : choice.text;
    const ofPrompt =
      promptLogprobs === null
        ? "null"
        : promptLogprobsJson(
            this.#engine.tokenizer,
            tokens[prompt]!,
            this.#handles[choice.index]!.promptLogprobs(promptLogprobs),
          );
    return (
      `{"index":${choice.index},"text":${JSON.stringify(text)},"logprobs":${this.#logprobsJson(choice, prompt, true)},` +
      `"finish_reason":"${choice.finish.reason}","stop_reason":${JSON.stringify(choice.finish.stopReason)},` +
      `"token_ids":${returnTokenIds ? JSON.stringify(choice.tokens) : "null"},"prompt_logprobs":${ofPrompt},` +
      `"prompt_token_ids":${returnTokenIds ? JSON.stringify(tokens[prompt]) : "null"},"routed_experts":null}`
    );
  }

  #logprobsJson(delta: Pick<Delta, "index" | "tokens" | "logprobs">, prompt: number, first: boolean): string {
    const writer = this.#logprobs[delta.index];
    if (writer === undefined) return "null";
    const { echo, logprobs, tokens } = this.#options;
    if (echo && first) {
      const ofPrompt = this.#handles[delta.index]!.promptLogprobs(logprobs!);
      tokens[prompt]!.forEach((token, position) => writer.add(token, ofPrompt[position]!));
    }
    delta.tokens.forEach((token, position) => writer.add(token, delta.logprobs[position]!));
    return writer.take();
  }
}
