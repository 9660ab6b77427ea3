// Changes an engine's answer by byte splices before others may see it. Everything else, such as float formats and
// fields unknown to Tandem, stays as the engine wrote it.
import { FinishReason } from "#gen/tandem/decode/v1/decode_pb.js";
import { scanArray, scanObject, splice, type Member } from "../common/json-body.ts";

/** Values that the client sees in place of the engine's own. */
export interface ResponseIdentity {
  /** Public id. */
  readonly id: string;
  /** Unix time in seconds. */
  readonly created: number;
  /** `index` of the one choice. */
  readonly choiceIndex: number;
  /**
   * Prompt tokens that the prefill engine had cached. Undefined: unknown. The decode engine's own figure is dropped,
   * because it counts the received KV as cached (vLLM 0.23).
   */
  readonly cachedTokens: number | undefined;
}

export interface AnswerUsage {
  readonly promptTokens: number;
  readonly completionTokens: number;
}

export interface ReadAnswer {
  readonly json: Buffer;
  readonly choiceCount: number;
  /** As the engine spells it. Undefined where no choice has ended. */
  readonly finishReason: string | undefined;
  readonly usage: AnswerUsage | undefined;
}

const [OPEN, COMMA, CLOSE] = ["[", ",", "]"].map((mark) => Buffer.from(mark)) as [Buffer, Buffer, Buffer];

type Changes = Map<string, string | Buffer | undefined>;

/** Carry addresses and ids of engines. A null is left alone: vLLM prints it in every answer. */
const INTERNAL_FIELDS: readonly string[] = ["kv_transfer_params", "ec_transfer_params"];

/**
 * One answer, or one chunk of a streamed one, with the identity that the client sees.
 *
 * @param keepUsage False: `usage` is taken out, the client didn't ask for it.
 * @throws SyntaxError when it is not what an engine answers.
 */
export function rewriteAnswer(
  json: Buffer,
  members: readonly Member[],
  identity: ResponseIdentity,
  keepUsage: boolean,
): ReadAnswer {
  const changes: Changes = new Map([
    ["id", JSON.stringify(identity.id)],
    ["created", String(identity.created)],
  ]);
  let choiceCount = 0;
  let finishReason: string | undefined;
  let usage: AnswerUsage | undefined;
  for (const { key, valueStart, valueEnd } of members) {
    const value = json.subarray(valueStart, valueEnd);
    if (INTERNAL_FIELDS.includes(key)) {
      if (!isNull(value)) changes.set(key, "null");
    } else if (key === "choices" && !isNull(value)) {
      const elements = scanArray(json, valueStart, valueEnd);
      choiceCount = elements.length;
      if (choiceCount === 0) continue;
      const rewritten = elements.map(({ start, end }) =>
        rewriteChoice(json.subarray(start, end), identity.choiceIndex),
      );
      finishReason = rewritten.find((choice) => choice.finishReason !== undefined)?.finishReason;
      const parts = rewritten.flatMap((choice) => [COMMA, choice.json]);
      changes.set(key, Buffer.concat([OPEN, ...parts.slice(1), CLOSE]));
    } else if (key === "usage" && !isNull(value)) {
      usage = readUsage(value);
      changes.set(key, keepUsage ? rewriteUsage(value, identity.cachedTokens) : undefined);
    }
  }
  return { json: splice(json, members, changes), choiceCount, finishReason, usage };
}

/** Unknown ones count as STOP, as decode.proto says. */
export function finishReasonOf(word: string): FinishReason {
  if (word === "length") return FinishReason.LENGTH;
  if (word === "tool_calls") return FinishReason.TOOL_CALLS;
  if (word === "abort") return FinishReason.ABORT;
  return FinishReason.STOP;
}

function rewriteChoice(choice: Buffer, index: number): { json: Buffer; finishReason: string | undefined } {
  const members = scanObject(choice);
  const ended = members.find((member) => member.key === "finish_reason");
  const changes: Changes = new Map([["index", String(index)]]);
  for (const { key, valueStart, valueEnd } of members) {
    if (INTERNAL_FIELDS.includes(key) && !isNull(choice.subarray(valueStart, valueEnd))) changes.set(key, "null");
  }
  return {
    json: splice(choice, members, changes),
    finishReason: ended === undefined ? undefined : stringOf(choice.subarray(ended.valueStart, ended.valueEnd)),
  };
}

function readUsage(usage: Buffer): AnswerUsage {
  const read = JSON.parse(usage.toString("utf8")) as Record<string, unknown>;
  return { promptTokens: whole(read["prompt_tokens"]), completionTokens: whole(read["completion_tokens"]) };
}

function rewriteUsage(usage: Buffer, cachedTokens: number | undefined): Buffer {
  const members = scanObject(usage);
  const details = members.find((member) => member.key === "prompt_tokens_details");
  const value = details === undefined ? undefined : usage.subarray(details.valueStart, details.valueEnd);
  const absent = value === undefined || isNull(value);
  if (cachedTokens === undefined)
    return absent ? usage : splice(usage, members, new Map([["prompt_tokens_details", "null"]]));
  const rewritten = absent
    ? `{"cached_tokens":${cachedTokens}}`
    : splice(value, scanObject(value), new Map([["cached_tokens", String(cachedTokens)]]));
  return splice(usage, members, new Map<string, string | Buffer>([["prompt_tokens_details", rewritten]]));
}

function whole(value: unknown): number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= 0xffff_ffff ? value : 0;
}

function isNull(value: Buffer): boolean {
  return value.length === 4 && value.toString("latin1") === "null";
}

function stringOf(value: Buffer): string | undefined {
  return value[0] === 0x22 ? (JSON.parse(value.toString("utf8")) as string) : undefined;
}
