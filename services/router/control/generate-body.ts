// Turns a typed GenerateRequest into an OpenAI request, which is then served like one that arrived over REST.
import { type GenerateRequest, type Message, Speaker } from "#gen/tandem/inference/v1/inference_pb.js";
import { duplicateKey, scanObject, type Member } from "../../common/json-body.ts";
import { ServiceError } from "../../common/errors.ts";
import type { LegPath } from "../../kv/connector.ts";
import { checkParts } from "../serving/json-object.ts";

const ROLES: Readonly<Record<Speaker, string>> = {
  [Speaker.UNSPECIFIED]: "user",
  [Speaker.SYSTEM]: "system",
  [Speaker.USER]: "user",
  [Speaker.ASSISTANT]: "assistant",
};

/** Limits the fields of extra_json. */
const EXTRA_LIMIT = 900;

/** @throws ServiceError `invalid_request` */
export function generateBody(request: GenerateRequest): { path: LegPath; body: Buffer } {
  const { input } = request;
  if (input.case === undefined) {
    throw new ServiceError("invalid_request", "Give either `prompt` or `conversation`.", { param: "input" });
  }
  const isPrompt = input.case === "prompt";
  // By name as JSON; undefined ones are left out. extra_json must hold none of these names.
  const fields: Readonly<Record<string, string | undefined>> = {
    model: request.model === "" ? undefined : JSON.stringify(request.model),
    prompt: isPrompt ? JSON.stringify(input.value) : undefined,
    messages: isPrompt ? undefined : JSON.stringify(input.value.messages.map(openAiMessage)),
    max_tokens: request.maxTokens?.toString(),
    temperature: decimal(request.temperature, "temperature"),
    top_p: decimal(request.topP, "top_p"),
    // Written as text, because a double can't hold all 64 bits.
    seed: request.seed?.toString(),
    stop: request.stop.length === 0 ? undefined : JSON.stringify(request.stop),
    stream: "true",
    stream_options: '{"include_usage":true}',
    max_completion_tokens: undefined,
    // The messages of this call can't carry several answers.
    n: undefined,
  };
  const members = Object.entries(fields).filter(([, json]) => json !== undefined);
  const all = [...members, ...extraMembers(request.extraJson, fields)];
  return {
    path: isPrompt ? "/v1/completions" : "/v1/chat/completions",
    body: Buffer.from(`{${all.map(([key, json]) => `${JSON.stringify(key)}:${json}`).join(",")}}`),
  };
}

function openAiMessage({ speaker, text }: Message): { role: string; content: string } {
  return { role: ROLES[speaker] ?? "user", content: text };
}

// JSON has no infinity and no NaN.
function decimal(value: number | undefined, param: string): string | undefined {
  if (value === undefined || Number.isFinite(value)) return value?.toString();
  throw new ServiceError("invalid_request", `${param} must be a finite number.`, { param });
}

/** The names of `extra_json` and their values, byte for byte. */
function extraMembers(json: string, own: object): [key: string, json: string][] {
  if (json.trim() === "") return [];
  const bad = (why: string): ServiceError =>
    new ServiceError("invalid_request", `extra_json ${why}.`, { param: "extra_json" });
  const bytes = Buffer.from(json);
  checkParts(bytes);
  let members: Member[];
  try {
    JSON.parse(json);
    members = scanObject(bytes);
  } catch {
    throw bad("must be a JSON object");
  }
  const twice = duplicateKey(members);
  if (twice !== undefined) throw bad(`gives \`${twice}\` twice`);
  if (members.length > EXTRA_LIMIT) throw bad(`must not hold more than ${EXTRA_LIMIT} fields`);
  const taken = members.find(({ key }) => Object.hasOwn(own, key))?.key;
  if (taken !== undefined) {
    const why = taken === "n" ? "this call gives one answer" : "the request has a field for it, or sets it";
    throw bad(`must not hold \`${taken}\`: ${why}`);
  }
  return members.map(({ key, valueStart, valueEnd }) => [key, bytes.toString("utf8", valueStart, valueEnd)]);
}
