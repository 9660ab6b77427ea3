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

/** @param names The models that are served. */
export function modelNotFound(asked: string, names: Iterable<string>): ServiceError {
  const id = asked.length > 200 ? `${asked.slice(0, 200)}…` : asked;
  const message = `The model \`${id}\` does not exist. Valid aliases: ${[...names].join(", ")}.`;
  return new ServiceError("model_not_found", message, { param: "model" });
}

/** An integer, or undefined where it is absent or null. Text of digits counts, as it does in vLLM. */
export function integerField(fields: Fields, key: FieldOf<"integer">): number | undefined {
  const value = fields[key];
  if (value === undefined || value === null) return undefined;
  if (Number.isInteger(value)) return value as number;
  if (typeof value === "string" && /^\s*[+-]?\d{1,15}\s*$/.test(value)) return Number(value);
  const [type, why] = INTEGER_FAULTS[typeof value] ?? ["int_type", ""];
  throw malformed(type, `body.${key}`, `Input should be a valid integer${why}`, value);
}

/** By the type of the value. */
const INTEGER_FAULTS: Readonly<Record<string, readonly [type: string, why: string]>> = {
  number: ["int_from_float", ", got a number with a fractional part"],
  string: ["int_parsing", ", unable to parse string as an integer"],
};

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
