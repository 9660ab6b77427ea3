// Reads one event of an engine's stream the slow way: its data, and what kind of event it is.
import { scanObject, type Member } from "../common/json-body.ts";

const DONE = Buffer.from("[DONE]");
/** Of the error that an engine reports in its stream, in bytes. */
const ERROR_LIMIT_BYTES = 2_000;

export type StreamEvent =
  /** A comment, such as vLLM's `: keep-alive`. */
  | { readonly kind: "nothing" }
  | { readonly kind: "done" }
  /** JSON of the reported error, cut off at a limit. Must never be shown. */
  | { readonly kind: "error"; readonly error: string }
  | { readonly kind: "chunk"; readonly data: Buffer; readonly members: readonly Member[] };

/** @throws SyntaxError if no engine sends such an event. */
export function readEvent(event: Buffer): StreamEvent {
  const data = dataOf(event);
  if (data === undefined) return { kind: "nothing" };
  if (data.equals(DONE)) return { kind: "done" };
  const members = scanObject(data);
  const failed = members.find((member) => member.key === "error");
  if (failed === undefined || data.toString("latin1", failed.valueStart, failed.valueEnd) === "null")
    return { kind: "chunk", data, members };
  const { valueStart, valueEnd } = failed;
  const error = data.toString("utf8", valueStart, Math.min(valueEnd, valueStart + ERROR_LIMIT_BYTES));
  return { kind: "error", error };
}

/** The data of an event, its lines joined. Undefined where it has none. */
function dataOf(event: Buffer): Buffer | undefined {
  // Latin-1 keeps all bytes as they are.
  const lines = event.toString("latin1").split(/\r?\n/);
  const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(line[5] === " " ? 6 : 5));
  return data.length === 0 ? undefined : Buffer.from(data.join("\n"), "latin1");
}
