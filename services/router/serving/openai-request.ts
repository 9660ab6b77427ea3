// The fields that Tandem reads of a completion request: those it routes by, and those it overrides on the prefill copy,
// so that no engine would see the client's value before prefill is paid for. All other fields are the engine's to
// judge. Messages and their order are vLLM's (transcripts of 0.32.0).
import { ServiceError } from "../../common/errors.ts";
import type { LegPath } from "../../kv/connector.ts";
import { refusedField } from "../../kv/forbidden.ts";
import type { RelayRequest } from "../request/request.ts";
import { parseJsonObject } from "./json-object.ts";
import type { Fields } from "./body-fields.ts";
import {
  booleanField,
  integerField,
  malformed,
  modelNotFound,
  objectField,
  refused,
  stringField,
} from "./validation.ts";

/** What the relay is asked for, and the body's wishes for the queue. */
export interface OpenAiRequest
  extends Pick<
    RelayRequest,
    "model" | "stream" | "repeatable" | "choices" | "maxTokens" | "prompts" | "promptIsList" | "includeUsage"
  > {
  /** `user`, which the queue uses as the tenant. Empty if absent. */
  readonly user: string;
  /** vLLM's `priority`: lower is sooner. */
  readonly priority: number;
}

/** Of a `user` that is remembered. */
const USER_LIMIT = 128;

/** By name. A context length of 0: no instance says how long it is. */
type Models = ReadonlyMap<string, { readonly maxModelLen: number }>;

/**
 * @param legsLimit Choices times prompts of one request.
 * @throws ServiceError `invalid_request`, `not_supported`, `model_not_found`, `no_instance`
 */
export function readOpenAiRequest(path: LegPath, body: Buffer, models: Models, legsLimit: number): OpenAiRequest {
  const parsed = parseJsonObject(body);
  const fields: Fields = parsed;
  // vLLM would take 1 or "true" for these too, and what is refused below would pass in that disguise.
  for (const flag of ["echo", "use_beam_search"] as const) booleanField(fields, flag);
  const refusal = refusedField(parsed);
  if (refusal !== undefined) {
    throw new ServiceError(refusal.reserved ? "invalid_request" : "not_supported", refusal.message, {
      param: refusal.param,
    });
  }
  const asked = stringField(fields, "model");
  const stream = booleanField(fields, "stream");
  const options = objectField(fields, "stream_options");
  const includeUsage =
    options !== undefined && booleanField(options, "include_usage", "body.stream_options.include_usage");
  const choices = integerField(fields, "n") ?? 1;
  const chat = path === "/v1/chat/completions";
  // In completions vLLM doesn't know max_completion_tokens; in chat it wins.
  const maxTokens =
    (chat ? integerField(fields, "max_completion_tokens") : undefined) ?? integerField(fields, "max_tokens");
  // In completions vLLM takes 16 where none is given.
  const limit = maxTokens ?? (chat ? undefined : 16);
  const minTokens = integerField(fields, "min_tokens") ?? 0;
  const prompts = chat ? undefined : promptList(fields);
  if (chat) checkMessages(fields);
  if (options !== undefined && !stream) {
    throw refused(
      "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
      "stream_options",
    );
  }
  const model = modelOf(asked, models);
  checkTokens(maxTokens, minTokens, models.get(model)?.maxModelLen ?? 0);
  checkChoices(fields, choices, prompts ?? 1, legsLimit);
  // The engine refuses a value that is not a text or a number here.
  const { user, priority } = fields;
  return {
    model,
    stream,
    repeatable: isGreedy(fields) || Number.isInteger(fields.seed),
    choices,
    prompts: prompts ?? 1,
    promptIsList: prompts !== undefined,
    includeUsage,
    ...(limit === undefined ? {} : { maxTokens: limit }),
    user: typeof user === "string" ? user.slice(0, USER_LIMIT) : "",
    priority: typeof priority === "number" && Number.isInteger(priority) ? priority : 0,
  };
}

function modelOf(asked: string | undefined, models: Models): string {
  if (models.size === 0) {
    throw new ServiceError(
      "no_instance",
      "No model is served yet: no instance has registered. Try again in a second.",
      { retryAfterS: 1 },
    );
  }
  const names = [...models.keys()];
  // vLLM takes a request without a model for its only one.
  if (asked === undefined || asked === "") {
    if (names.length === 1) return names[0]!;
    throw refused(`Several models are served, so the request has to name one: ${names.join(", ")}.`, "model");
  }
  if (models.has(asked)) return asked;
  throw modelNotFound(asked, names);
}

function checkTokens(maxTokens: number | undefined, minTokens: number, maxModelLen: number): void {
  if (minTokens < 0) throw refused(`min_tokens must be greater than or equal to 0, got ${minTokens}.`);
  if (maxTokens === undefined) return;
  const given = `(parameter=max_tokens, value=${maxTokens})`;
  if (maxTokens < 1) throw refused(`max_tokens must be at least 1, got ${maxTokens}. ${given}`, "max_tokens");
  if (maxModelLen > 0 && maxTokens > maxModelLen) {
    const fault = `max_tokens=${maxTokens} cannot be greater than max_model_len=${maxModelLen}.`;
    throw refused(`${fault} Please request fewer output tokens. ${given}`, "max_tokens");
  }
  if (minTokens > maxTokens) {
    throw refused(`min_tokens must be less than or equal to max_tokens=${maxTokens}, got ${minTokens}.`);
  }
}

function checkChoices(fields: Fields, choices: number, prompts: number, legsLimit: number): void {
  if (choices < 1) throw refused(`n must be at least 1, got ${choices}.`);
  if (choices > 1 && isGreedy(fields)) {
    throw refused(`n must be 1 when using greedy sampling, got ${choices}.`);
  }
  if (choices * prompts > legsLimit) {
    throw refused(
      `The request asks for ${choices * prompts} answers (n times prompts), more than the ${legsLimit} that this server ` +
        "takes at once. Split it into several requests.",
      prompts > 1 ? "prompt" : "n",
    );
  }
}

/** vLLM samples greedily below 1e-5 (sampling_params.py, _SAMPLING_EPS). */
function isGreedy({ temperature }: Fields): boolean {
  return typeof temperature === "number" && temperature >= 0 && temperature < 1e-5;
}

function checkMessages(fields: Fields): void {
  const { messages } = fields;
  if (messages === undefined) throw malformed("missing", "body.messages", "Field required", fields);
  if (!Array.isArray(messages)) throw malformed("list_type", "body.messages", "Input should be a valid list", messages);
  if (messages.length === 0) {
    throw refused("Cannot apply chat template to an empty conversation. Provide at least one message.");
  }
}

/** Prompts in a list of prompts; undefined where there is one: a text, or its token ids. */
function promptList({ prompt }: Fields): number | undefined {
  if (prompt === undefined || prompt === null || prompt === "" || (Array.isArray(prompt) && prompt.length === 0)) {
    throw refused("Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)", "prompt");
  }
  if (typeof prompt === "string" || isTokenList(prompt)) return undefined;
  if (Array.isArray(prompt)) {
    if (prompt.every((item) => typeof item === "string") || prompt.every(isTokenList)) return prompt.length;
  }
  throw malformed(
    "prompt_type",
    "body.prompt",
    "Input should be a string, a list of strings, a list of token ids or a list of such lists",
    prompt,
  );
}

function isTokenList(value: unknown): boolean {
  return Array.isArray(value) && value.every((item) => Number.isInteger(item));
}
