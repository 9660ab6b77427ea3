// The bodies of the two legs, as byte splices of the client's. A parse and re-print would change large integers, key
// order and spacing; a splice leaves all other bytes alone.
import { scanArray, scanObject, splice, type Member } from "../common/json-body.ts";
import type { LegSpec } from "./connector.ts";

type Changes = Map<string, string | Buffer | undefined>;

/**
 * The copy for the prefill engine: the same prompt, one token, no stream.
 * `stop` and similar fields are removed, because the one token is dropped anyway. `logprobs`, sampling fields and
 * grammars stay, so that an engine that refuses them does so before the decode leg starts.
 */
export function prefillBody(context: LegSpec, extra: Changes = new Map()): Buffer {
  const changes: Changes = onePrompt(context);
  changes.set("max_tokens", "1");
  // In chat this field overrides max_tokens; in completions vLLM ignores it.
  if (context.path === "/v1/chat/completions") changes.set("max_completion_tokens", "1");
  for (const key of ["stream", "stream_options", "min_tokens", "n", "best_of", "echo", "stop", "stop_token_ids"]) {
    if (has(context.members, key)) changes.set(key, undefined);
  }
  for (const [key, value] of extra) changes.set(key, value);
  return splice(context.body, context.members, changes);
}

/** The copy for the decode engine: the client's body, reduced to this leg's prompt and choice. */
export function decodeBody(context: LegSpec, extra: Changes = new Map()): Buffer {
  const { body, members } = context;
  const changes: Changes = onePrompt(context);
  if (has(members, "n")) changes.set("n", "1");
  if (has(members, "best_of")) changes.set("best_of", undefined);
  if (context.sampleIndex > 0) {
    const seed = rawValue(body, members, "seed");
    // vLLM gives choice i of a seeded request the seed + i (v1/engine/parallel_sampling.py, 0.32). Seeds are 64-bit.
    if (seed !== undefined && /^-?\d+$/.test(seed))
      changes.set("seed", String(BigInt(seed) + BigInt(context.sampleIndex)));
  }
  if (rawValue(body, members, "stream") === "true") changes.set("stream_options", withUsage(body, members));
  for (const [key, value] of extra) changes.set(key, value);
  return splice(body, members, changes);
}

/** This leg's prompt from a list of prompts, as raw bytes, so that token ids stay as they were written. */
function onePrompt(context: LegSpec): Changes {
  const changes: Changes = new Map();
  if (context.promptIndex === undefined) return changes;
  const prompt = context.members.find((member) => member.key === "prompt");
  const elements = prompt === undefined ? [] : scanArray(context.body, prompt.valueStart, prompt.valueEnd);
  const element = elements[context.promptIndex];
  if (element === undefined) throw new RangeError(`prompt ${context.promptIndex} of ${elements.length}`);
  changes.set("prompt", context.body.subarray(element.start, element.end));
  return changes;
}

/** `stream_options` with `include_usage` on: the leg's token counts come from that chunk. */
function withUsage(body: Buffer, members: readonly Member[]): Buffer | string {
  const options = members.find((member) => member.key === "stream_options");
  if (options === undefined || body[options.valueStart] !== 0x7b /* { */) return '{"include_usage":true}';
  const inner = body.subarray(options.valueStart, options.valueEnd);
  return splice(inner, scanObject(inner), new Map([["include_usage", "true"]]));
}

/** Whether the client itself asked for the usage chunk. */
export function asksForUsage(body: Buffer, members: readonly Member[]): boolean {
  const options = members.find((member) => member.key === "stream_options");
  if (options === undefined || body[options.valueStart] !== 0x7b /* { */) return false;
  const inner = body.subarray(options.valueStart, options.valueEnd);
  return rawValue(inner, scanObject(inner), "include_usage") === "true";
}

/** Whether the client asked for a stream. */
export function asksForStream(body: Buffer, members: readonly Member[]): boolean {
  return rawValue(body, members, "stream") === "true";
}

function has(members: readonly Member[], key: string): boolean {
  return members.some((member) => member.key === key);
}

function rawValue(body: Buffer, members: readonly Member[], key: string): string | undefined {
  const member = members.find((candidate) => candidate.key === key);
  return member === undefined ? undefined : body.toString("utf8", member.valueStart, member.valueEnd);
}
