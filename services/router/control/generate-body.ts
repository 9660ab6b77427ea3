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

/**
 * Fields that extra_json must not hold: the typed request sets them, or its messages can't carry the answers to them.
 */
const OWN = [
  "model",
  "prompt",
  "messages",
  "max_tokens",
  "max_completion_tokens",
  "temperature",
  "top_p",
  "seed",
  "stop",
  "stream",
  "stream_options",
  "n",
];

/** Limits the fields of extra_json. */
const EXTRA_LIMIT = 900;

/** @throws ServiceError `invalid_request` */
export function generateBody(request: GenerateRequest): { path: LegPath; body: Buffer } {
  const members: string[] = [];
  const put = (key: string, json: string): void => {
    members.push(`${JSON.stringify(key)}:${json}`);
  };
  if (request.model !== "") put("model", JSON.stringify(request.model));
  switch (request.input.case) {
    case "prompt":
      put("prompt", JSON.stringify(request.input.value));
      break;
    case "conversation":
      put("messages", JSON.stringify(request.input.value.messages.map(openAiMessage)));
      break;
    case undefined:
      throw new ServiceError("invalid_request", "Give either `prompt` or `conversation`.", { param: "input" });
  }
  if (request.maxTokens !== undefined) put("max_tokens", String(request.maxTokens));
  if (request.temperature !== undefined) put("temperature", decimal(request.temperature, "temperature"));
  if (request.topP !== undefined) put("top_p", decimal(request.topP, "top_p"));
  // Written as text, because a double can't hold all 64 bits.
  if (request.seed !== undefined) put("seed", request.seed.toString());
  if (request.stop.length > 0) put("stop", JSON.stringify(request.stop));
  put("stream", "true");
  put("stream_options", '{"include_usage":true}');
  members.push(...extraMembers(request.extraJson));
  return {
    path: request.input.case === "prompt" ? "/v1/completions" : "/v1/chat/completions",
    body: Buffer.from(`{${members.join(",")}}`),
  };
}

function openAiMessage({ speaker, text }: Message): { role: string; content: string } {
  return { role: ROLES[speaker] ?? "user", content: text };
}

// JSON has no infinity and no NaN.
function decimal(value: number, param: string): string {
  if (Number.isFinite(value)) return String(value);
  throw new ServiceError("invalid_request", `${param} must be a finite number.`, { param });
}

/** The members of `extra_json`, byte for byte. */
function extraMembers(json: string): string[] {
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
  const own = members.find((member) => OWN.includes(member.key));
  if (own !== undefined) {
    throw bad(
      `must not hold \`${own.key}\`: ${own.key === "n" ? "this call gives one answer" : "the request has a field for it, or sets it"}`,
    );
  }
  return members.map(
    (member) => `${JSON.stringify(member.key)}:${bytes.toString("utf8", member.valueStart, member.valueEnd)}`,
  );
}
