// Reads fields of a parsed body as vLLM's own validation would, and refuses in its words: clients and their tests match
// on them. Source: transcripts of vLLM 0.32.0 (pydantic's error types, FastAPI's `loc`).
import { ServiceError } from "../../common/errors.ts";
import type { FieldOf, Fields } from "./body-fields.ts";

/** A parsed JSON object. */
export type Parsed = Readonly<Record<string, unknown>>;

/** An error of vLLM's first layer, which checks the form of a body before anything else. */
export function malformed(type: string, loc: string, msg: string, input: unknown, reason?: string): ServiceError {
  const context = reason === undefined ? "" : `, 'ctx': {'error': ${quoted(reason)}}`;
  return new ServiceError(
    "invalid_request",
    `1 validation error:\n  {'type': '${type}', 'loc': '${loc}', 'msg': '${msg}', 'input': '${shown(input)}'${context}}`,
    { param: loc },
  );
}

// As Python prints a string.
function quoted(text: string): string {
  return text.includes("'") ? `"${text}"` : `'${text}'`;
}

/** An error of vLLM's second layer, which checks what the fields mean. */
export function refused(message: string, param?: string): ServiceError {
  return new ServiceError("invalid_request", message, param === undefined ? {} : { param });
}

/** An integer, or undefined where it is absent or null. Text of digits counts, as it does in vLLM. */
export function integerField(fields: Fields, key: FieldOf<"integer">): number | undefined {
  const value = fields[key];
  if (value === undefined || value === null) return undefined;
  if (typeof value === "number") {
    if (Number.isInteger(value)) return value;
    throw malformed(
      "int_from_float",
      `body.${key}`,
      "Input should be a valid integer, got a number with a fractional part",
      value,
    );
  }
  if (typeof value === "string") {
    if (/^\s*[+-]?\d{1,15}\s*$/.test(value)) return Number(value);
    throw malformed(
      "int_parsing",
      `body.${key}`,
      "Input should be a valid integer, unable to parse string as an integer",
      value,
    );
  }
  throw malformed("int_type", `body.${key}`, "Input should be a valid integer", value);
}

/**
 * `true` or `false`; absent and null are false. vLLM also takes 1, "yes" and the like. Not here: the legs are built from
 * the body's bytes, and one reading of a flag that decides the form of the answer must hold on all of the way.
 */
export function booleanField(fields: Fields, key: FieldOf<"boolean">, loc = `body.${key}`): boolean {
  const value = fields[key];
  if (value === undefined || value === null) return false;
  if (typeof value === "boolean") return value;
  throw malformed("bool_type", loc, "Input should be a valid boolean", value);
}

/** Text, or undefined where it is absent or null. */
export function stringField(fields: Fields, key: FieldOf<"text">): string | undefined {
  const value = fields[key];
  if (value === undefined || value === null) return undefined;
  if (typeof value === "string") return value;
  throw malformed("string_type", `body.${key}`, "Input should be a valid string", value);
}

/** A JSON object, or undefined where it is absent or null. */
export function objectField(fields: Fields, key: FieldOf<"object">): Parsed | undefined {
  const value = fields[key];
  if (value === undefined || value === null) return undefined;
  if (typeof value === "object" && !Array.isArray(value)) return value as Parsed;
  throw malformed(
    "model_attributes_type",
    `body.${key}`,
    "Input should be a valid dictionary or object to extract fields from",
    value,
  );
}

/** How vLLM shows a value in an error: never its inside. */
export function shown(value: unknown): string {
  if (value === null || value === undefined) return "None";
  if (Array.isArray(value)) return `<list of ${value.length} items>`;
  if (typeof value === "object") return `<dict of ${Object.keys(value).length} items>`;
  if (typeof value === "boolean") return value ? "True" : "False";
  const text = String(value);
  return text.length > 100 ? `${text.slice(0, 100)}…` : text;
}

/** vLLM's answer to a body that isn't announced as JSON. */
export function malformedMedia(message: string): ServiceError {
  return new ServiceError("invalid_request", `1 validation error:\n  ${message}`);
}
