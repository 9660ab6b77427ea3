// From the bytes of a body to a JSON object that Tandem and the engine read alike.
// Tandem reads it once with JSON.parse and cuts the legs' bodies out of the bytes; the engine reads those with Python's
// json. Whatever the two could understand differently (bad UTF-8, a key given twice) is refused.
import { isUtf8 } from "node:buffer";
import { ServiceError } from "../../common/errors.ts";
import { countParts, duplicateKey, scanObject, withTrueKeys } from "../../common/json-body.ts";
import { malformed, shown, type Parsed } from "./validation.ts";

/**
 * Fields, objects and lists of a body, however deep; a chat of 60,000 messages has as many. At worst, where each key is
 * another, they take a quarter of a second to parse. A million would take seconds, in which nothing else runs: other
 * streams stall, and instances seem to be gone.
 */
const PARTS_LIMIT = 200_000;
/** Fields of the body itself. */
const FIELDS_LIMIT = 1_000;

/**
 * Before a parse.
 *
 * @throws ServiceError `invalid_request`
 */
export function checkParts(json: Buffer): void {
  if (json.length <= PARTS_LIMIT || countParts(json, PARTS_LIMIT) <= PARTS_LIMIT) return;
  throw new ServiceError(
    "invalid_request",
    `The body has more than the ${PARTS_LIMIT} fields, objects and lists that this server accepts. Send less in one request.`,
  );
}

/** @throws ServiceError `invalid_request` in vLLM's words */
export function parseJsonObject(body: Buffer): Parsed {
  if (body.length === 0) throw malformed("missing", "body", "Field required", undefined);
  if (!isUtf8(body)) throw jsonInvalid(0, "The body is not valid UTF-8");
  checkParts(body);
  let parsed: unknown;
  try {
    parsed = JSON.parse(body.toString("utf8"));
  } catch (error) {
    throw jsonInvalid(...placeOf(error, body));
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw malformed(
      "model_attributes_type",
      "body",
      "Input should be a valid dictionary or object to extract fields from",
      parsed,
    );
  }
  const members = scanObject(body);
  if (members.length > FIELDS_LIMIT) {
    throw new ServiceError(
      "invalid_request",
      `The body has ${members.length} fields, more than the ${FIELDS_LIMIT} that this server accepts.`,
    );
  }
  const twice = duplicateKey(members);
  if (twice !== undefined) {
    throw new ServiceError("invalid_request", `The field \`${shown(twice)}\` is given twice. Give it once.`, {
      param: shown(twice),
    });
  }
  return withTrueKeys(parsed as Parsed, body, members);
}

function jsonInvalid(position: number | undefined, reason: string): ServiceError {
  return malformed(
    "json_invalid",
    position === undefined ? "body" : `body.${position}`,
    "JSON decode error",
    {},
    reason,
  );
}

/** Where and why V8 gave up. Some of its messages quote text, maybe half a prompt: the quote is left out. */
function placeOf(error: unknown, body: Buffer): [position: number | undefined, reason: string] {
  const message = error instanceof Error ? error.message : "";
  if (message === "Unexpected end of JSON input") return [body.length, "Unexpected end of input"];
  const placed = /^(.*?)(?: in JSON)? at position (\d+)/.exec(message);
  if (placed !== null) return [Number(placed[2]), placed[1]!];
  return [undefined, "Unexpected token"];
}
