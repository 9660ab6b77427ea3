// POST /v1/chat/completions: reads the request and writes its answers, byte for byte as vLLM 0.32 does.
import type { SequenceHandle, Message } from "../engine.ts";
import type { EngineCore } from "../engine-core.ts";
import type { AnswerPlan } from "./answer.ts";
import { missingFields, validationError, type Fields, type Json, type JsonObject } from "./body.ts";
import { badRequest, badValue } from "./exchange.ts";
import { commonFormat, idsJson, usageJson, type AnswerFormat, type Delta, type WholeChoice } from "./format.ts";
import { chatLogprobsJson } from "./logprobs.ts";
import { checkModel, clampMaxTokens, readChoices, readId, readSamplingFields, readStream } from "./sampling.ts";

/** @throws HttpError if vLLM would refuse the request. */
export function planChat(engine: EngineCore, body: JsonObject, headerId: string | null): AnswerPlan {
  if (body["messages"] === undefined) throw missingFields(body, ["messages"]);
  const fields = readSamplingFields(body, {
    logprobs: "boolean",
    top_logprobs: "integer",
    max_completion_tokens: "integer",
    tools: "any",
    tool_choice: "any",
    ...CHAT_FIELDS,
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
  const prompt = readChatTokens(engine, fields);
  const { maxLength } = engine.model;
  const maxTokens = clampMaxTokens(
    fields.max_completion_tokens ?? fields.max_tokens,
    maxLength,
    prompt.length,
    maxLength,
  );
  const choices = readChoices(fields, maxTokens, logprobs, engine);
  // In chat, echo gives the prompt's logprobs and not its text.
  const promptLogprobs = fields.prompt_logprobs ?? (fields.echo === true ? (fields.top_logprobs ?? 0) : null);
  const id = `chatcmpl-${readId(fields, headerId)}`;
  const format = { stream, prompt, promptLogprobs, returnTokenIds: fields.return_token_ids ?? false };
  return {
    prompts: [{ id, tokens: prompt }],
    ...choices,
    stream,
    promptLogprobs,
    format: (handles) => chatFormat(engine, id, handles, format),
  };
}

/** The fields that make a prompt. */
export const CHAT_FIELDS = {
  messages: "any",
  add_generation_prompt: "boolean",
  continue_final_message: "boolean",
} as const;

/** @throws HttpError for a conversation that vLLM or the model's template would refuse. */
export function readChatTokens(engine: EngineCore, fields: Fields<typeof CHAT_FIELDS>): number[] {
  const { add_generation_prompt: openTurn, continue_final_message: continueFinal } = fields;
  return engine.chatTokens(readMessages(fields.messages), openTurn ?? true, continueFinal ?? false);
}

/** Accepts any role, as vLLM does. */
function readMessages(messages: Json): Message[] {
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
  readonly stream: AnswerPlan["stream"];
  readonly prompt: readonly number[];
  readonly promptLogprobs: number | null;
  readonly returnTokenIds: boolean;
}

function chatFormat(
  engine: EngineCore,
  id: string,
  handles: readonly SequenceHandle[],
  { stream, prompt, promptLogprobs, returnTokenIds }: FormatOptions,
): AnswerFormat {
  const common = commonFormat(engine, id, handles, {
    stream,
    chunkObject: "chat.completion.chunk",
    chunkUsageEnd: ',"completion_tokens_details":null',
  });
  const promptIds = `"prompt_token_ids":${idsJson(returnTokenIds, prompt)},"prompt_text":null`;
  const logprobsJson = ({ tokens, logprobs }: Pick<Delta, "tokens" | "logprobs">): string =>
    logprobs.length === 0 ? "null" : chatLogprobsJson(engine.tokenizer, tokens, logprobs);
  const choiceJson = (choice: WholeChoice): string => {
    const { reason, stopReason } = choice.finish;
    const message = `{"role":"assistant","content":${JSON.stringify(choice.text)},"refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}`;
    return (
      `{"index":${choice.index},"message":${message},"logprobs":${logprobsJson(choice)},"finish_reason":"${reason}",` +
      `"stop_reason":${JSON.stringify(stopReason)},"token_ids":${idsJson(returnTokenIds, choice.tokens)},"routed_experts":null}`
    );
  };
  return {
    usageEvent: common.usageEvent,
    opening: (choiceCount) =>
      Array.from(
        { length: choiceCount },
        (_, index) =>
          `${common.chunkHead}{"index":${index},"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]` +
          `${stream.continuousUsage ? common.chunkUsage(prompt.length, 0) : ""},${promptIds}}\n\n`,
      ),
    event(delta) {
      const { finish } = delta;
      const ending =
        finish === null
          ? '"finish_reason":null'
          : `"finish_reason":"${finish.reason}","stop_reason":${JSON.stringify(finish.stopReason)}`;
      return (
        `${common.chunkHead}{"index":${delta.index},"delta":{"content":${JSON.stringify(delta.text)}},"logprobs":${logprobsJson(delta)},` +
        `${ending},"token_ids":${idsJson(returnTokenIds, delta.tokens)}}${common.chunkTail(prompt.length, delta)}`
      );
    },
    body: (choices, usage) =>
      `${common.head("chat.completion")}${choices.map(choiceJson).join(",")}],"service_tier":null,${common.fingerprint},` +
      `${usageJson(usage)},"prompt_logprobs":${common.promptLogprobs(prompt, 0, promptLogprobs)},${promptIds},${common.bodyTail(choices)}`,
  };
}
