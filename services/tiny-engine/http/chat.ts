// POST /v1/chat/completions: reads the request and writes its answers, byte for byte as vLLM 0.32 does.
import type { Message, SequenceHandle } from "../engine.ts";
import type { EngineCore } from "../engine-core.ts";
import type { AnswerPlan } from "./answer.ts";
import { validationError, type Json, type JsonObject } from "./body.ts";
import { badRequest, badValue } from "./exchange.ts";
import { usageHead, usageJson, type AnswerFormat, type Delta, type Usage, type WholeChoice } from "./format.ts";
import { chatLogprobsJson, promptLogprobsJson } from "./logprobs.ts";
import { checkModel, clampMaxTokens, readChoices, readSamplingFields, readStream } from "./sampling.ts";

/**
 * @param requestId From the header, if there was one.
 * @throws HttpError if vLLM would refuse the request.
 */
export function planChat(
  engine: EngineCore,
  body: JsonObject,
  requestId: string | null,
  newId: () => string,
  reportCached: boolean,
): AnswerPlan {
  if (body["messages"] === undefined) {
    throw validationError([
      {
        type: "missing",
        loc: "body.messages",
        msg: "Field required",
        input: `'<dict of ${Object.keys(body).length} items>'`,
      },
    ]);
  }
  const fields = readSamplingFields(body, {
    messages: "any",
    logprobs: "boolean",
    top_logprobs: "integer",
    max_completion_tokens: "integer",
    tools: "any",
    tool_choice: "any",
    add_generation_prompt: "boolean",
    continue_final_message: "boolean",
  });
  const stream = readStream(fields);
  const logprobs = fields.logprobs === true ? (fields.top_logprobs ?? 0) : null;
  if ((fields.top_logprobs ?? 0) > 0 && logprobs === null) {
    throw badValue("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs");
  }
  checkModel(fields.model, engine.model.name);
  if (Array.isArray(fields.tools) && fields.tools.length > 0 && (fields.tool_choice ?? "auto") === "auto") {
    throw badRequest('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set');
  }
  const { model } = engine;
  const prompt = engine.chatTokens(
    readMessages(fields.messages),
    fields.add_generation_prompt ?? true,
    fields.continue_final_message ?? false,
  );
  const asked = fields.max_completion_tokens ?? fields.max_tokens;
  const maxTokens = clampMaxTokens(asked, model.maxLength, prompt.length, model.maxLength);
  const choices = readChoices(fields, maxTokens, logprobs, engine);
  // In chat, echo gives the prompt's logprobs and not its text.
  const promptLogprobs = fields.prompt_logprobs ?? (fields.echo === true ? (fields.top_logprobs ?? 0) : null);
  const id = `chatcmpl-${requestId ?? fields.request_id ?? newId()}`;
  return {
    prompts: [{ id, tokens: prompt }],
    ...choices,
    stream,
    promptLogprobs,
    reportCached,
    format: (handles) =>
      new ChatFormat(engine, id, handles, {
        prompt,
        promptLogprobs,
        returnTokenIds: fields.return_token_ids ?? false,
        includeUsage: stream.includeUsage,
        continuousUsage: stream.continuousUsage,
      }),
  };
}

/** @throws HttpError for anything but a list of messages. Accepts any role, as vLLM does. */
export function readMessages(messages: Json): Message[] {
  if (!Array.isArray(messages)) {
    throw validationError([
      { type: "list_type", loc: "body.messages", msg: "Input should be a valid list", input: `'${String(messages)}'` },
    ]);
  }
  if (messages.length === 0)
    throw badRequest("Cannot apply chat template to an empty conversation. Provide at least one message.");
  return messages.map((message: Json) => {
    const { role, content } = (message ?? {}) as { role?: Json; content?: Json };
    const parts = Array.isArray(content) ? content : [];
    const text =
      typeof content === "string"
        ? content
        : parts.map((part: Json) => String((part as { text?: Json } | null)?.text ?? "")).join("\n");
    return { role: String(role ?? "user"), content: text };
  });
}

interface FormatOptions {
  readonly prompt: readonly number[];
  readonly promptLogprobs: number | null;
  readonly returnTokenIds: boolean;
  readonly includeUsage: boolean;
  readonly continuousUsage: boolean;
}

class ChatFormat implements AnswerFormat {
  readonly #engine: EngineCore;
  readonly #handles: readonly SequenceHandle[];
  readonly #options: FormatOptions;
  readonly #id: string;
  readonly #rest: string;
  readonly #head: string;
  readonly #fingerprint: string;

  constructor(engine: EngineCore, id: string, handles: readonly SequenceHandle[], options: FormatOptions) {
    this.#engine = engine;
    this.#handles = handles;
    this.#options = options;
    this.#id = `{"id":${JSON.stringify(id)},"object":`;
    this.#rest = `,"created":${Math.floor(Date.now() / 1000)},"model":${JSON.stringify(engine.model.name)},"choices":[`;
    this.#head = `${this.#id}"chat.completion.chunk"${this.#rest}`;
    this.#fingerprint = `"system_fingerprint":${JSON.stringify(engine.model.fingerprint)}`;
  }

  opening(choiceCount: number): string[] {
    const { prompt, returnTokenIds, continuousUsage } = this.#options;
    const usage = continuousUsage ? `,${usageHead(prompt.length, 0)},"completion_tokens_details":null}` : "";
    return Array.from(
      { length: choiceCount },
      (_, index) =>
        `data: ${this.#head}{"index":${index},"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]${usage},` +
        `"prompt_token_ids":${returnTokenIds ? JSON.stringify(prompt) : "null"},"prompt_text":null}\n\n`,
    );
  }

  event(delta: Delta): string {
    const { returnTokenIds, includeUsage, continuousUsage, prompt } = this.#options;
    const { finish } = delta;
    const ending =
      finish === null
        ? '"finish_reason":null'
        : `"finish_reason":"${finish.reason}","stop_reason":${JSON.stringify(finish.stopReason)}`;
    const tail = continuousUsage
      ? `,${usageHead(prompt.length, delta.completionTokens)},"completion_tokens_details":null}`
      : finish !== null && !includeUsage
        ? `,${this.#fingerprint}`
        : "";
    return (
      `data: ${this.#head}{"index":${delta.index},"delta":{"content":${JSON.stringify(delta.text)}},"logprobs":${this.#logprobsJson(delta)},` +
      `${ending},"token_ids":${returnTokenIds ? JSON.stringify(delta.tokens) : "null"}}]${tail}}\n\n`
    );
  }

  usageEvent({ promptTokens, completionTokens, cachedTokens }: Usage): string {
    const details = cachedTokens === null ? "" : `,"prompt_tokens_details":{"cached_tokens":${cachedTokens}}`;
    return `data: ${this.#head}],${usageHead(promptTokens, completionTokens)}${details}},${this.#fingerprint}}\n\n`;
  }

  body(choices: readonly WholeChoice[], usage: Usage): string {
    const { prompt, promptLogprobs, returnTokenIds } = this.#options;
    const kvTransferParams =
      choices
        .map(({ finish }) => finish.kvTransferParams)
        .filter((params) => params !== null)
        .at(-1) ?? null;
    const ofPrompt =
      promptLogprobs === null
        ? "null"
        : promptLogprobsJson(this.#engine.tokenizer, prompt, this.#handles[0]!.promptLogprobs(promptLogprobs));
    return (
      `${this.#id}"chat.completion"${this.#rest}${choices.map((choice) => this.#choiceJson(choice)).join(",")}],"service_tier":null,` +
      `${this.#fingerprint},${usageJson(usage)},"prompt_logprobs":${ofPrompt},` +
      `"prompt_token_ids":${returnTokenIds ? JSON.stringify(prompt) : "null"},"prompt_text":null,` +
      `"kv_transfer_params":${JSON.stringify(kvTransferParams)},"ec_transfer_params":null,"metrics":null}`
    );
  }

  #choiceJson(choice: WholeChoice): string {
    const message = `{"role":"assistant","content":${JSON.stringify(choice.text)},"refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}`;
    return (
      `{"index":${choice.index},"message":${message},"logprobs":${this.#logprobsJson(choice)},"finish_reason":"${choice.finish.reason}",` +
      `"stop_reason":${JSON.stringify(choice.finish.stopReason)},"token_ids":${this.#options.returnTokenIds ? JSON.stringify(choice.tokens) : "null"},"routed_experts":null}`
    );
  }

  #logprobsJson({ tokens, logprobs }: Pick<Delta, "tokens" | "logprobs">): string {
    return logprobs.length === 0 ? "null" : chatLogprobsJson(this.#engine.tokenizer, tokens, logprobs);
  }
}
