// The bodies of the two legs, as byte splices of the client's. A parse and re-print would change large integers, key
// order and spacing; a splice leaves all other bytes alone.
import { ServiceError } from "../common/errors.ts";
import { scanArray, scanObject, splice, type Member } from "../common/json-body.ts";
import type { LegSpec } from "./connector.ts";

type Changes = Map<string, string | Buffer | undefined>;

/**
 * The copy for the prefill engine: the same prompt, one token, no stream.
 * `stop` and similar fields are removed, because the one token is dropped anyway. `logprobs`, sampling fields and
 * grammars stay, so that an engine that refuses them does so before the decode leg starts.
 *
 * @param kvParams Raw JSON for `kv_transfer_params`.
 */
export function prefillBody(context: LegSpec, kvParams?: string): Buffer {
  const changes = commonChanges(context, kvParams);
  changes.set("max_tokens", "1");
  // In chat this field overrides max_tokens; in completions vLLM ignores it.
  if (context.path === "/v1/chat/completions") changes.set("max_completion_tokens", "1");
  for (const key of ["stream", "stream_options", "min_tokens", "n", "best_of", "echo", "stop", "stop_token_ids"])
    changes.set(key, undefined);
  return splice(context.body, context.members, changes);
}

/** The copy for the decode engine: the client's body, reduced to this leg's prompt and choice. */
export function decodeBody(context: LegSpec, kvParams?: string): Buffer {
  const { body, members, sampleIndex } = context;
  const changes = commonChanges(context, kvParams);
  if (find(members, "n") !== undefined) changes.set("n", "1");
  changes.set("best_of", undefined);
  const seed = textOf(body, members, "seed");
  // vLLM gives choice i of a seeded request the seed + i (v1/engine/parallel_sampling.py, 0.32). Seeds are 64-bit.
  if (sampleIndex > 0 && seed !== undefined && /^-?\d+$/.test(seed))
    changes.set("seed", String(BigInt(seed) + BigInt(sampleIndex)));
  if (context.joined === true) {
    changes.set("stream", "true");
    // vLLM ignores it without a stream; with one it would hold tokens back.
    changes.set("stream_interval", undefined);
  }
  if (context.joined === true || asksForStream(body, members)) {
    // The leg's token counts come from the usage chunk.
    const options = streamOptions(body, members);
    changes.set("stream_options", splice(options, scanObject(options), new Map([["include_usage", "true"]])));
  }
  return splice(body, members, changes);
}

/** What both copies need: this leg's prompt from a list of prompts, as raw bytes, so that token ids stay as written. */
function commonChanges({ body, members, promptIndex }: LegSpec, kvParams: string | undefined): Changes {
  const changes: Changes = new Map();
  if (kvParams !== undefined) changes.set("kv_transfer_params", kvParams);
  if (promptIndex === undefined) return changes;
  const prompt = find(members, "prompt");
  const elements = prompt === undefined ? [] : scanArray(body, prompt.valueStart, prompt.valueEnd);
  const element = elements[promptIndex];
  if (element === undefined) {
    const message = `prompt_index: there is no prompt ${promptIndex} of ${elements.length}.`;
    throw new ServiceError("invalid_request", message);
  }
  return changes.set("prompt", body.subarray(element.start, element.end));
}

/** Whether the client itself asked for the usage chunk. */
export function asksForUsage(body: Buffer, members: readonly Member[]): boolean {
  const options = streamOptions(body, members);
  return textOf(options, scanObject(options), "include_usage") === "true";
}

/** Whether the client asked for a stream. */
export function asksForStream(body: Buffer, members: readonly Member[]): boolean {
  return textOf(body, members, "stream") === "true";
}

/** The client's `stream_options`; an empty object if it gave none. */
function streamOptions(body: Buffer, members: readonly Member[]): Buffer {
  const options = find(members, "stream_options");
  if (options === undefined || body[options.valueStart] !== 0x7b /* { */) return NO_OPTIONS;
  return body.subarray(options.valueStart, options.valueEnd);
}

const NO_OPTIONS = Buffer.from("{}");

function find(members: readonly Member[], key: string): Member | undefined {
  return members.find((member) => member.key === key);
}

function textOf(body: Buffer, members: readonly Member[], key: string): string | undefined {
  const member = find(members, key);
  return member && body.toString("utf8", member.valueStart, member.valueEnd);
}
