// From bytes to known fields, failing as FastAPI and pydantic do: the same codes, locations and messages.
import { HttpError } from "./exchange.ts";

export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };
export type JsonObject = { readonly [key: string]: Json };

interface Complaint {
  readonly type: string;
  /** Dotted, from `body` on. */
  readonly loc: string;
  readonly msg: string;
  /** As Python prints it. */
  readonly input: string;
  readonly context?: string;
}

export function validationError(complaints: readonly Complaint[]): HttpError {
  const lines = complaints.map(
    ({ type, loc, msg, input, context }) =>
      `\n  {'type': '${type}', 'loc': '${loc}', 'msg': '${msg}', 'input': ${input}${context === undefined ? "" : `, 'ctx': {'error': '${context}'}`}}`,
  );
  const message = `${complaints.length} validation error${complaints.length === 1 ? "" : "s"}:${lines.join("")}`;
  return new HttpError(400, "Bad Request", message, complaints[0]!.loc);
}

export function missingFields(body: JsonObject, fields: readonly string[]): HttpError {
  const input = summary(body);
  return validationError(
    fields.map((field) => ({ type: "missing", loc: `body.${field}`, msg: "Field required", input })),
  );
}

/** @throws HttpError as FastAPI does: wrong content type, no body, broken JSON, not an object. */
export function parseObject(text: string, contentType: string | undefined): JsonObject {
  if ((contentType ?? "").toLowerCase().split(";")[0]!.trim() !== "application/json") {
    throw new HttpError(
      400,
      "Bad Request",
      "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
    );
  }
  if (text === "") throw validationError([{ type: "missing", loc: "body", msg: "Field required", input: "'None'" }]);
  let value: Json;
  try {
    value = JSON.parse(text) as Json;
  } catch (error) {
    const { position, complaint } = pythonJsonError(text, error as SyntaxError);
    throw validationError([
      {
        type: "json_invalid",
        loc: `body.${position}`,
        msg: "JSON decode error",
        input: "'<dict of 0 items>'",
        context: complaint,
      },
    ]);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw validationError([
      {
        type: "model_attributes_type",
        loc: "body",
        msg: "Input should be a valid dictionary or object to extract fields from",
        input: summary(value),
      },
    ]);
  }
  return value as JsonObject;
}

/** What V8's message says, and what Python's json module says then. */
const JSON_ERRORS = [
  ["property name", "Expecting property name enclosed in double quotes"],
  ["Expected ':'", "Expecting ':' delimiter"],
  ["Expected ','", "Expecting ',' delimiter"],
  ["Unterminated string", "Unterminated string starting at"],
  ["after JSON", "Extra data"],
  ["control character", "Invalid control character at"],
  ["escape", "Invalid \\escape"],
] as const;

/** V8's messages distinguish the cases, though not always as finely as Python's. */
function pythonJsonError(text: string, { message }: SyntaxError): { position: number; complaint: string } {
  const position = Number(/at position (\d+)/.exec(message)?.[1] ?? text.length);
  const known = JSON_ERRORS.find(([part]) => message.includes(part));
  return { position, complaint: known?.[1] ?? "Expecting value" };
}

/** A value as pydantic's error quotes it, in vLLM's shortened form. */
function summary(value: Json): string {
  if (Array.isArray(value)) return `'<list of ${value.length} items>'`;
  if (typeof value === "object" && value !== null) return `'<dict of ${Object.keys(value).length} items>'`;
  return `'${value === null ? "None" : value === true ? "True" : value === false ? "False" : String(value)}'`;
}

export type FieldType = "integer" | "number" | "boolean" | "string" | "any";

/** Known fields, as pydantic would hand them on; absent and null fields are null. */
export type Fields<Spec> = {
  readonly [Key in keyof Spec]:
    | (Spec[Key] extends "integer" | "number"
        ? number
        : Spec[Key] extends "boolean"
          ? boolean
          : Spec[Key] extends "string"
            ? string
            : Json)
    | null;
};

/**
 * Reads the fields of `spec` with pydantic's lax conversions ("10" is an integer, 1 is true).
 * Ignores unknown fields, as vLLM does.
 *
 * @throws HttpError that names every invalid field.
 */
export function readFields<Spec extends Readonly<Record<string, FieldType>>>(
  body: JsonObject,
  spec: Spec,
): Fields<Spec> {
  const complaints: Complaint[] = [];
  const fields: Record<string, Json> = {};
  for (const [name, type] of Object.entries(spec)) {
    const value = body[name] ?? null;
    const read = value === null || type === "any" ? value : READERS[type](value);
    if (typeof read === "object" && read !== null && type !== "any") {
      complaints.push({
        ...(read as unknown as { type: string; msg: string }),
        loc: `body.${name}`,
        input: summary(value),
      });
    } else {
      fields[name] = read as Json;
    }
  }
  if (complaints.length > 0) throw validationError(complaints);
  return fields as Fields<Spec>;
}

type Misfit = { readonly type: string; readonly msg: string };

const READERS: Readonly<Record<Exclude<FieldType, "any">, (value: Json) => number | boolean | string | Misfit>> = {
  integer(value) {
    if (typeof value === "boolean") return Number(value);
    if (typeof value === "string") {
      return /^\s*[+-]?\d+\s*$/.test(value)
        ? Number(value)
        : { type: "int_parsing", msg: "Input should be a valid integer, unable to parse string as an integer" };
    }
    if (typeof value !== "number") return { type: "int_type", msg: "Input should be a valid integer" };
    return Number.isInteger(value)
      ? value
      : { type: "int_from_float", msg: "Input should be a valid integer, got a number with a fractional part" };
  },
  number(value) {
    if (typeof value === "boolean") return Number(value);
    if (typeof value === "string") {
      return value.trim() !== "" && Number.isFinite(Number(value))
        ? Number(value)
        : { type: "float_parsing", msg: "Input should be a valid number, unable to parse string as a number" };
    }
    return typeof value === "number" ? value : { type: "float_type", msg: "Input should be a valid number" };
  },
  boolean(value) {
    if (typeof value === "boolean") return value;
    if (value === 0 || value === 1) return value === 1;
    if (typeof value === "string" || typeof value === "number") {
      const known = { true: true, false: false, yes: true, no: false, on: true, off: false, 1: true, 0: false }[
        String(value).toLowerCase()
      ];
      return known ?? { type: "bool_parsing", msg: "Input should be a valid boolean, unable to interpret input" };
    }
    return { type: "bool_type", msg: "Input should be a valid boolean" };
  },
  string: (value) =>
    typeof value === "string" ? value : { type: "string_type", msg: "Input should be a valid string" },
};
