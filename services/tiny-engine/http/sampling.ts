// The sampling fields of both endpoints, with vLLM's checks in vLLM's order and words (SamplingParams of 0.32).
import { randomBytes } from "node:crypto";
import type { Sampling } from "../engine.ts";
import type { EngineCore } from "../engine-core.ts";
import { readFields, type Fields, type FieldType, type Json, type JsonObject } from "./body.ts";
import { badRequest, badValue, HttpError } from "./exchange.ts";

const SAMPLING_FIELDS = {
  model: "string",
  stream: "boolean",
  stream_options: "any",
  n: "integer",
  seed: "integer",
  temperature: "number",
  top_p: "number",
  top_k: "integer",
  min_p: "number",
  presence_penalty: "number",
  frequency_penalty: "number",
  repetition_penalty: "number",
  max_tokens: "integer",
  min_tokens: "integer",
  stop: "any",
  stop_token_ids: "any",
  ignore_eos: "boolean",
  include_stop_str_in_output: "boolean",
  echo: "boolean",
  prompt_logprobs: "integer",
  return_token_ids: "boolean",
  logit_bias: "any",
  response_format: "any",
  structured_outputs: "any",
  add_special_tokens: "boolean",
  request_id: "string",
  kv_transfer_params: "any",
} as const;

export type SamplingFields = Fields<typeof SAMPLING_FIELDS>;

const MAX_LOGPROBS = 20;

export interface StreamChoice {
  readonly stream: boolean;
  readonly includeUsage: boolean;
  readonly continuousUsage: boolean;
}

/** @throws HttpError if usage is asked for without a stream. */
export function readStream(fields: SamplingFields): StreamChoice {
  const options = fields.stream_options as JsonObject | null;
  const stream = fields.stream ?? false;
  if (options !== null && !stream)
    throw badValue("Stream options can only be defined when `stream=True`.", "stream_options");
  const includeUsage = options?.["include_usage"] === true;
  return { stream, includeUsage, continuousUsage: includeUsage && options?.["continuous_usage_stats"] === true };
}

/** The header's id, the body's, or a new one. */
export function readId(fields: SamplingFields, headerId: string | null): string {
  return headerId ?? fields.request_id ?? randomBytes(8).toString("hex");
}

/** @throws HttpError 404. A missing model means the one that is served. */
export function checkModel(asked: string | null, served: string): void {
  if (asked === null || asked === served) return;
  throw new HttpError(
    404,
    "NotFoundError",
    `The model \`${asked}\` does not exist. Valid aliases: ${served}.`,
    "model",
  );
}

function readStops(fields: SamplingFields): readonly string[] {
  const { stop } = fields;
  const stops = stop === null ? [] : Array.isArray(stop) ? stop : [stop];
  if (stops.some((one) => typeof one !== "string"))
    throw badRequest("stop must be a string or a list of strings", "stop");
  if (stops.includes("")) throw badRequest("stop cannot contain an empty string.");
  return stops as string[];
}

/**
 * Limit on new tokens: the requested number, or the remaining length, or `fallback`.
 *
 * @throws HttpError if the prompt leaves no length, or the request exceeds the model's length.
 */
export function clampMaxTokens(
  asked: number | null,
  fallback: number,
  promptTokens: number,
  maxLength: number,
): number {
  if (asked !== null && asked > maxLength) {
    const why = `max_tokens=${asked} cannot be greater than max_model_len=${maxLength}. Please request fewer output tokens.`;
    throw badValue(why, "max_tokens", String(asked));
  }
  // vLLM stops tokenizing one token past the limit, so it doesn't know the length of longer prompts.
  if (promptTokens >= maxLength) {
    const seen = Math.min(promptTokens, maxLength + 1);
    const why =
      promptTokens > maxLength
        ? `your prompt contains at least ${seen} input tokens, which exceeds this limit even without any output tokens. ` +
          "Please reduce the length of the input prompt."
        : `you requested 1 output tokens and your prompt contains at least ${seen} input tokens, for a total of at least ` +
          `${seen + 1} tokens. Please reduce the length of the input prompt or the number of requested output tokens.`;
    throw badValue(
      `This model's maximum context length is ${maxLength} tokens. However, ${why}`,
      "input_tokens",
      String(seen),
    );
  }
  return Math.min(asked ?? fallback, maxLength - promptTokens);
}

/** How the choices of one prompt are drawn and where they end. */
export interface ChoicesPlan {
  readonly n: number;
  /** One for each choice. */
  readonly samplings: readonly Sampling[];
  readonly stops: readonly string[];
  readonly includeStop: boolean;
  readonly kvTransferParams: Readonly<Record<string, unknown>> | null;
}

/**
 * @param maxTokens Already clamped.
 * @param logprobs Alternatives per token; null for none.
 * @throws HttpError for the first value out of range.
 */
export function readChoices(
  fields: SamplingFields,
  maxTokens: number,
  logprobs: number | null,
  engine: EngineCore,
): ChoicesPlan {
  const n = fields.n ?? 1;
  const temperature = fields.temperature ?? 1;
  const minTokens = fields.min_tokens ?? 0;
  if (n < 1) throw badRequest(`n must be at least 1, got ${n}.`);
  within("presence_penalty", fields.presence_penalty, -2, 2);
  within("frequency_penalty", fields.frequency_penalty, -2, 2);
  if ((fields.repetition_penalty ?? 1) <= 0)
    throw badRequest(`repetition_penalty must be greater than zero, got ${python(fields.repetition_penalty!)}.`);
  if (temperature < 0)
    throw badValue(`temperature must be non-negative, got ${python(temperature)}.`, "temperature", python(temperature));
  const topP = fields.top_p ?? 1;
  if (topP <= 0 || topP > 1) throw badValue(`top_p must be in (0, 1], got ${python(topP)}.`, "top_p", python(topP));
  if ((fields.top_k ?? 0) < -1) throw badRequest(`top_k must be 0 (disable), or at least 1, got ${fields.top_k!}.`);
  within("min_p", fields.min_p, 0, 1);
  if (maxTokens < 1)
    throw badValue(`max_tokens must be at least 1, got ${maxTokens}.`, "max_tokens", String(maxTokens));
  if (minTokens < 0) throw badRequest(`min_tokens must be greater than or equal to 0, got ${minTokens}.`);
  if (minTokens > maxTokens)
    throw badRequest(`min_tokens must be less than or equal to max_tokens=${maxTokens}, got ${minTokens}.`);
  for (const [param, value, kind] of [
    ["logprobs", logprobs, "sample"],
    ["prompt_logprobs", fields.prompt_logprobs, "prompt"],
  ] as const) {
    if (value !== null && value < 0)
      throw badValue(`${param} must be non-negative, got ${value}.`, param, String(value));
    if (value !== null && value > MAX_LOGPROBS) {
      throw badValue(
        `Requested ${kind} logprobs of ${value}, which is greater than max allowed: ${MAX_LOGPROBS}`,
        param,
        String(value),
      );
    }
  }
  refuseGrammars(fields, engine);
  if (temperature === 0 && n > 1) throw badRequest(`n must be 1 when using greedy sampling, got ${n}.`);
  const sampling: Sampling = {
    temperature,
    topP,
    topK: Math.max(0, fields.top_k ?? 0),
    minP: fields.min_p ?? 0,
    presencePenalty: fields.presence_penalty ?? 0,
    frequencyPenalty: fields.frequency_penalty ?? 0,
    repetitionPenalty: fields.repetition_penalty ?? 1,
    logitBias: readLogitBias(fields.logit_bias, engine.tokenizer.vocabularySize),
    seed: fields.seed,
    maxTokens,
    minTokens,
    ignoreEos: fields.ignore_eos ?? false,
    logprobs,
    stopTokenIds: readTokenIds(fields.stop_token_ids),
  };
  const { seed } = sampling;
  return {
    n,
    samplings: Array.from({ length: n }, (_, child) => ({ ...sampling, seed: seed === null ? null : seed + child })),
    stops: readStops(fields),
    includeStop: fields.include_stop_str_in_output ?? false,
    kvTransferParams: fields.kv_transfer_params as JsonObject | null,
  };
}

/** vLLM's shortest message for a format that it cannot constrain. */
function refuseGrammars(
  { response_format: format, structured_outputs: structured }: SamplingFields,
  engine: EngineCore,
): void {
  if (engine.model.takesGrammars) return;
  const type = (format as { type?: Json } | null)?.type ?? "text";
  if (type !== "text")
    throw badRequest(
      `response_format ${JSON.stringify(type)} is not supported: this engine has no structured outputs.`,
      "response_format",
    );
  if (structured !== null)
    throw badRequest("structured_outputs is not supported by this engine.", "structured_outputs");
}

function readLogitBias(value: Json, vocabularySize: number): ReadonlyMap<number, number> | null {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return null;
  const entries = Object.entries(value).map(([token, bias]) => [Number(token), Number(bias)] as const);
  if (entries.some(([token, bias]) => !Number.isInteger(token) || Number.isNaN(bias))) {
    throw badRequest(
      `Found token_id in logit_bias but token_id must be an integer or string representing an integer`,
      "logit_bias",
    );
  }
  const outside = entries.map(([token]) => token).filter((token) => token < 0 || token >= vocabularySize);
  if (outside.length > 0) {
    throw badRequest(
      `token_id(s) [${outside.join(", ")}] in logit_bias contain out-of-vocab token ids. Vocabulary size: ${vocabularySize}`,
      "logit_bias",
    );
  }
  return entries.length === 0
    ? null
    : new Map(entries.map(([token, bias]) => [token, Math.max(-100, Math.min(100, bias))]));
}

function readTokenIds(value: Json): ReadonlySet<number> | null {
  if (!Array.isArray(value) || value.length === 0) return null;
  return new Set(value.filter((id) => typeof id === "number"));
}

function within(param: string, value: number | null, low: number, high: number): void {
  if (value !== null && (value < low || value > high))
    throw badRequest(`${param} must be in [${low}, ${high}], got ${python(value)}.`);
}

/** A float as Python prints it. */
function python(value: number): string {
  return Number.isInteger(value) ? `${value}.0` : String(value);
}

/** The fields above, and those that only one endpoint has. */
export function readSamplingFields<Spec extends Readonly<Record<string, FieldType>>>(
  body: JsonObject,
  more: Spec,
): SamplingFields & Fields<Spec> {
  return readFields(body, { ...SAMPLING_FIELDS, ...more }) as SamplingFields & Fields<Spec>;
}
