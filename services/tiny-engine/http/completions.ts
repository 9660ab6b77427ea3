// POST /v1/completions: reads the request and writes its answers, byte for byte as vLLM 0.32 does.
import type { SequenceHandle } from "../engine.ts";
import type { EngineCore } from "../engine-core.ts";
import type { AnswerPlan } from "./answer.ts";
import type { Json, JsonObject } from "./body.ts";
import { badRequest, badValue } from "./exchange.ts";
import { commonFormat, idsJson, usageJson, type AnswerFormat, type Delta, type WholeChoice } from "./format.ts";
import { CompletionLogprobs } from "./logprobs.ts";
import { checkModel, clampMaxTokens, readChoices, readId, readSamplingFields, readStream } from "./sampling.ts";

const DEFAULT_MAX_TOKENS = 16;

/** @throws HttpError if vLLM would refuse the request. */
export function planCompletions(engine: EngineCore, body: JsonObject, headerId: string | null): AnswerPlan {
  const fields = readSamplingFields(body, { prompt: "any", suffix: "string", logprobs: "integer" });
  const stream = readStream(fields);
  const given = readPrompts(fields.prompt);
  checkModel(fields.model, engine.model.name);
  if (fields.suffix) throw badRequest("suffix is only supported for models with FIM completion rendering", "suffix");
  const { tokenizer, model } = engine;
  const prompts = given.map((prompt) =>
    typeof prompt === "string"
      ? tokenizer.encodePrompt(prompt, fields.add_special_tokens !== false)
      : checkIds(prompt, tokenizer.vocabularySize),
  );
  const limits = prompts.map(({ length }) =>
    clampMaxTokens(fields.max_tokens, DEFAULT_MAX_TOKENS, length, model.maxLength),
  );
  const { logprobs } = fields;
  const choices = readChoices(fields, Math.min(...limits), logprobs, engine);
  const id = `cmpl-${readId(fields, headerId)}`;
  const echo = fields.echo ?? false;
  const promptLogprobs = fields.prompt_logprobs ?? (echo ? logprobs : null);
  const texts = given.map((prompt) => (typeof prompt === "string" ? prompt : tokenizer.decode(prompt)));
  const returnTokenIds = fields.return_token_ids ?? false;
  const format = { stream, n: choices.n, prompts, texts, echo, logprobs, promptLogprobs, returnTokenIds };
  return {
    prompts: prompts.map((tokens, index) => ({ id: `${id}-${index}`, tokens })),
    ...choices,
    stream,
    promptLogprobs,
    format: (handles) => completionsFormat(engine, id, handles, format),
  };
}

/** One string, a list of strings, one list of token ids, or a list of such lists. */
function readPrompts(prompt: Json): (string | readonly number[])[] {
  const missing = badValue("Either prompt or prompt_embeds must be provided and non-empty.", "prompt");
  const wrong = "prompt must be a string, array of strings, array of tokens, or array of token arrays";
  const read = (item: Json): string | readonly number[] => {
    if (item === "" || (Array.isArray(item) && item.length === 0)) throw missing;
    if (typeof item === "string") return item;
    if (Array.isArray(item) && item.every((id) => typeof id === "number")) return item;
    throw badRequest(wrong, "prompt");
  };
  if (prompt === null) throw missing;
  const isList = Array.isArray(prompt) && prompt.some((item: Json) => typeof item !== "number");
  return isList ? prompt.map(read) : [read(prompt)];
}

function checkIds(ids: readonly number[], vocabularySize: number): readonly number[] {
  const outside = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabularySize);
  if (outside !== undefined) throw badRequest(`Token id ${outside} is out of vocabulary`);
  return ids;
}

interface FormatOptions {
  readonly stream: AnswerPlan["stream"];
  readonly n: number;
  readonly prompts: readonly (readonly number[])[];
  /** Of the prompts. */
  readonly texts: readonly string[];
  readonly echo: boolean;
  readonly logprobs: number | null;
  readonly promptLogprobs: number | null;
  readonly returnTokenIds: boolean;
}

function completionsFormat(
  engine: EngineCore,
  id: string,
  handles: readonly SequenceHandle[],
  { stream, n, prompts, texts, echo, logprobs, promptLogprobs, returnTokenIds }: FormatOptions,
): AnswerFormat {
  const object = "text_completion";
  const common = commonFormat(engine, id, handles, { stream, chunkObject: object, chunkUsageEnd: "" });
  /** One per choice, if logprobs were asked for: offsets count through the whole answer. */
  const writers = logprobs === null ? [] : handles.map(() => new CompletionLogprobs(engine.tokenizer, logprobs));
  const promptOf = (choice: number): number => Math.floor(choice / n);
  const logprobsJson = (part: Pick<Delta, "index" | "tokens" | "logprobs">, first: boolean): string => {
    const writer = writers[part.index];
    if (writer === undefined) return "null";
    if (echo && first) {
      const ofPrompt = handles[part.index]!.promptLogprobs(logprobs!);
      prompts[promptOf(part.index)]!.forEach((token, position) => writer.add(token, ofPrompt[position]!));
    }
    part.tokens.forEach((token, position) => writer.add(token, part.logprobs[position]!));
    return writer.take();
  };
  const choiceJson = (choice: WholeChoice): string => {
    const { index, finish, tokens } = choice;
    const prompt = prompts[promptOf(index)]!;
    const text = echo ? texts[promptOf(index)]! + choice.text : choice.text;
    return (
      `{"index":${index},"text":${JSON.stringify(text)},"logprobs":${logprobsJson(choice, true)},` +
      `"finish_reason":"${finish.reason}","stop_reason":${JSON.stringify(finish.stopReason)},` +
      `"token_ids":${idsJson(returnTokenIds, tokens)},"prompt_logprobs":${common.promptLogprobs(prompt, index, promptLogprobs)},` +
      `"prompt_token_ids":${idsJson(returnTokenIds, prompt)},"routed_experts":null}`
    );
  };
  return {
    usageEvent: common.usageEvent,
    opening: () => [],
    event(delta) {
      const { index, finish, first } = delta;
      const prompt = prompts[promptOf(index)]!;
      const text = echo && first ? texts[promptOf(index)]! + delta.text : delta.text;
      const ending =
        finish === null
          ? '"finish_reason":null,"stop_reason":null'
          : `"finish_reason":"${finish.reason}","stop_reason":${JSON.stringify(finish.stopReason)}`;
      return (
        `${common.chunkHead}{"index":${index},"text":${JSON.stringify(text)},"logprobs":${logprobsJson(delta, first)},${ending},` +
        // vLLM lists the prompt's ids in the first chunk of an echo too, whether asked for or not.
        `"prompt_token_ids":${idsJson(first && (returnTokenIds || echo), prompt)},` +
        `"token_ids":${idsJson(returnTokenIds, delta.tokens)}}${common.chunkTail(prompt.length, delta)}`
      );
    },
    body: (choices, usage) =>
      `${common.head(object)}${choices.map(choiceJson).join(",")}],"service_tier":null,${common.fingerprint},` +
      `${usageJson(usage)},${common.bodyTail(choices)}`,
  };
}
