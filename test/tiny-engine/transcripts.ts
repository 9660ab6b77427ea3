// The recorded answers of real vLLM 0.32.0, and what of an answer does not depend on its model: the
// order of keys, which values are null, every fixed value; not texts, ids, token counts and times.
import { readFileSync } from "node:fs";
import { parseResponse, type RawRequest, type RawResponse } from "./raw-http.ts";

const FOLDER = new URL("../fixtures/vllm-transcripts/", import.meta.url);

interface Entry {
  readonly instance: string;
  readonly method: string;
  readonly path: string;
  readonly headers: readonly string[];
  readonly body: unknown;
  readonly status: number | null;
}

const manifest = JSON.parse(readFileSync(new URL("manifest.json", FOLDER), "utf8")) as Record<string, Entry>;

/** Names of the transcripts of one recorded server, without `.http`. */
export function transcriptNames(instance: string): string[] {
  return Object.entries(manifest)
    .filter(([, entry]) => entry.instance === instance)
    .map(([file]) => file.replace(/\.http$/, ""));
}

export function recordedRequest(name: string): RawRequest & { readonly json: Record<string, unknown> } {
  const { method, path, headers, body } = manifest[`${name}.http`]!;
  const text = body === null ? null : typeof body === "string" ? body : JSON.stringify(body);
  return { method, path, headers, body: text, json: (body ?? {}) as Record<string, unknown> };
}

export function recordedResponse(name: string): RawResponse {
  const response = parseResponse(readFileSync(new URL(`${name}.http`, FOLDER)), manifest[`${name}.http`]!.method);
  if (response === null) throw new Error(`${name}.http holds no complete response`);
  return response;
}

/** Values that belong to the model, its tokenizer or the moment. */
const MODEL_NUMBERS = new Set([
  "created",
  "prompt_tokens",
  "total_tokens",
  "logprob",
  "rank",
  "remote_num_tokens",
  "remote_prefill_cached_tokens",
  "remote_port",
  "count",
  "cached_tokens",
  "stop_reason",
]);
const MODEL_TEXTS = new Set([
  "text",
  "content",
  "root",
  "remote_engine_id",
  "remote_request_id",
  "remote_host",
  "token",
  "decoded_token",
  "prompt",
]);
const MODEL_ARRAYS = new Set([
  "token_ids",
  "prompt_token_ids",
  "bytes",
  "remote_block_ids",
  "tokens",
  "text_offset",
  "token_logprobs",
  "token_strs",
]);

/** What is left of a response; two responses of the same server for the same request have the same. */
export function essence(response: RawResponse, options: { readonly endingVaries?: boolean } = {}): unknown {
  const fixed = new Set(["server", "content-type", "allow", "vary", "transfer-encoding"]);
  const headers = response.headers.map(([name, value]) => (fixed.has(name) ? `${name}: ${value}` : name));
  return {
    status: response.statusLine,
    headers,
    body: response.chunks.some((chunk) => chunk.startsWith("data: "))
      ? eventsEssence(response.chunks, options)
      : response.chunks.map((chunk) => bodyEssence(chunk, options)),
  };
}

function bodyEssence(text: string, options: { readonly endingVaries?: boolean }): unknown {
  if (text.startsWith("#")) return "metrics";
  // As text: the order of keys counts.
  return text === "" ? "" : JSON.stringify(shape("", JSON.parse(text), options));
}

/** One event may hold several tokens, so runs of alike events of one choice count as one. */
function eventsEssence(chunks: readonly string[], options: { readonly endingVaries?: boolean }): unknown {
  const byChoice: Record<string, string[]> = {};
  for (const chunk of chunks) {
    const data = /^data: (.*)\n\n$/s.exec(chunk)?.[1];
    if (data === undefined) throw new Error(`a chunk is not one event: ${JSON.stringify(chunk)}`);
    const value = data === "[DONE]" ? null : (JSON.parse(data) as { choices?: { index: number }[]; error?: unknown });
    const choice = String(value?.choices?.[0]?.index ?? "all");
    // The error event is Python's own JSON, with spaces: those bytes are fixed.
    const seen = value === null || value.error !== undefined ? data : JSON.stringify(shape("", value, options));
    const events = (byChoice[choice] ??= []);
    if (events.at(-1) !== seen) events.push(seen);
  }
  return byChoice;
}

function shape(key: string, value: unknown, options: { readonly endingVaries?: boolean }): unknown {
  if (value === null) return null;
  if (Array.isArray(value)) {
    if (MODEL_ARRAYS.has(key)) return "ids";
    const shapes = value.map((item) => shape(key, item, options));
    if (key === "choices" || key === "data" || key === "permission") return shapes;
    // Lists as long as a prompt or an answer: which kinds of items they hold, in order.
    return shapes.filter((item, index) => JSON.stringify(item) !== JSON.stringify(shapes[index - 1]));
  }
  if (typeof value === "object") {
    const entries = Object.entries(value);
    // Keyed by token: how many there are depends on whether the prompt's own token was a likely one.
    if (key === "top_logprobs" || key === "prompt_logprobs") {
      return [...new Set(entries.map(([, item]) => JSON.stringify(shape("item", item, options))))];
    }
    return Object.fromEntries(
      entries.map(([name, item]) => [name, leaf(name, item, options) ?? shape(name, item, options)]),
    );
  }
  return key === "item" || key === "top_logprobs" ? typeof value : value;
}

/** Null where nothing about the value depends on the model. */
function leaf(name: string, value: unknown, options: { readonly endingVaries?: boolean }): unknown {
  // With a stop the reason may be a token id, without one it is null.
  if (
    options.endingVaries === true &&
    (name === "finish_reason" || name === "stop_reason" || name === "completion_tokens")
  )
    return "any";
  if (value === null) return null;
  if (name === "id") return String(value).replace(/[0-9a-f]{16}/, "<id>");
  if (name === "system_fingerprint") return String(value).replace(/[0-9a-f]{8}$/, "<hash>");
  if (MODEL_NUMBERS.has(name) && typeof value === "number") return "number";
  if (MODEL_TEXTS.has(name) && typeof value === "string") return "text";
  return null;
}
