// A receipt in words, with a line of time for each attempt.
import { Outcome, type Leg, type Receipt } from "#gen/tandem/router/v1/router_pb.js";

/** Characters of the line of time. */
const WIDTH = 60;
/** A part that took any time at all is seen. */
const PARTS = [
  ["reserve", "r"],
  ["prefill", "P"],
  ["transfer", "t"],
  ["decode", "D"],
] as const;

const OUTCOMES: Readonly<Record<number, string>> = {
  [Outcome.UNSPECIFIED]: "Still running",
  [Outcome.COMPLETED]: "Completed",
  [Outcome.CANCELLED]: "Cancelled by its client",
  [Outcome.REFUSED]: "Refused",
  [Outcome.FAILED]: "Failed",
};

/** What each kind of fallback means: by the whole of it, or the word before its first colon. */
const MEANINGS: Readonly<Record<string, string>> = {
  retry: "a failed attempt was made again, before its first byte",
  replay: "the stream broke, and another pair wrote it again, to the byte, up to where the client was",
  "replay:diverged": "the stream broke, and the other pair wrote something else: it ended with its first error",
  "replay:failed": "the stream broke, and could not be written again in time: it ended with its first error",
  busy: "an instance had no room, and the request waited or went elsewhere",
  pair_avoided: "a pair whose legs fail with each other was passed over",
  aggregated: "decode computed the prompt as well, for no prefill instance was left",
  direct: "decode computed the short prompt as well",
  "stale-registry": "the registry was away, and the instances known before were used",
};

export function storyOf(receipt: Receipt): string {
  const { legs, queueMs, ttftMs, totalMs } = receipt;
  const lines = [heading(receipt), summary(receipt), ""];
  const event = (atMs: number, text: string): void => void lines.push(`${ms(atMs).padStart(10)}  ${text}`);
  event(0, `arrived at ${new Date(Number(receipt.startedUnixMs)).toISOString()}${scheduling(receipt)}`);
  if (queueMs >= 0.05) event(queueMs, "let in, after the queue");
  const events: [number, string][] = legs.map((leg, index) => [leg.startedMs, attempt(leg, index, legs.length)]);
  if (ttftMs > 0) events.push([ttftMs, receipt.stream ? "first bytes to the client" : "answer to the client"]);
  for (const [atMs, text] of events.sort(([a], [b]) => a - b)) event(atMs, text);
  if (totalMs > 0) event(totalMs, `ended${receipt.error === "" ? "" : `: ${receipt.errorCode}: ${receipt.error}`}`);
  if (receipt.fallbacks.length > 0) {
    lines.push("", "Otherwise than planned:");
    for (const text of receipt.fallbacks) lines.push(`  ${text}: ${MEANINGS[text] ?? MEANINGS[text.split(":")[0]!] ?? "see the documentation"}`);
  }
  if (legs.length > 0) lines.push("", ...timeline(receipt));
  return lines.join("\n");
}

function heading({ requestId, path, model, stream }: Receipt): string {
  return `${requestId}: ${path}, model ${model}${stream ? ", streamed" : ""}`;
}

function summary({ outcome, status, totalMs, legs, bodyBytes }: Receipt): string {
  const last = legs.at(-1);
  const parts = [`${OUTCOMES[outcome] ?? "Ended"}${status > 0 ? ` with status ${status}` : ""}${totalMs > 0 ? ` after ${ms(totalMs)}` : ""}`];
  if (last !== undefined && last.promptTokens > 0) {
    const cached = last.cachedTokens === undefined ? "" : ` (${last.cachedTokens} cached)`;
    parts.push(`${last.promptTokens} prompt tokens${cached}, ${last.completionTokens} of answer`);
  }
  if (last?.kvBytes !== undefined) parts.push(`${last.kvBytes} bytes of KV moved`);
  parts.push(`${bodyBytes} bytes sent`);
  return `${parts.join("; ")}.`;
}

function scheduling({ tenant, priority }: Receipt): string {
  const parts = [...(tenant === "" ? [] : [`tenant ${tenant}`]), ...(priority === 0 ? [] : [`priority ${priority}`])];
  return parts.length === 0 ? "" : ` (${parts.join(", ")})`;
}

function attempt(leg: Leg, index: number, count: number): string {
  const where =
    leg.prefillInstanceId === "" ? `decode alone on ${leg.decodeInstanceId || "none"}` : `prefill on ${leg.prefillInstanceId}, decode on ${leg.decodeInstanceId || "none"}`;
  const times = timesOf(leg).filter(([, took]) => took > 0).map(([name, took]) => `${name} ${ms(took)}`);
  const name = count === 1 ? "leg" : `leg ${index + 1} of ${count}`;
  return `${name}: ${where}${times.length === 0 ? "" : ` (${times.join(", ")})`}${leg.error === "" ? "" : `; ended by ${leg.error}`}`;
}

function timesOf({ reserveMs, prefillMs, handoverMs, decodeMs }: Leg): [string, number, string][] {
  const took = [reserveMs, prefillMs, handoverMs, decodeMs];
  return PARTS.map(([name, letter], index) => [name, took[index]!, letter]);
}

/** One row an attempt, all on the same scale. */
function timeline({ legs, queueMs, totalMs }: Receipt): string[] {
  const endMs = Math.max(totalMs, ...legs.map((leg) => leg.startedMs + timesOf(leg).reduce((sum, [, took]) => sum + took, 0)), 0.001);
  const column = (atMs: number): number => Math.min(WIDTH, Math.round((atMs / endMs) * WIDTH));
  const rows: string[] = [];
  if (column(queueMs) > 0) rows.push(`${"queue".padEnd(8)}|${"q".repeat(column(queueMs)).padEnd(WIDTH, ".")}|`);
  for (const [index, leg] of legs.entries()) {
    let atMs = leg.startedMs;
    const row = Array<string>(WIDTH).fill(".");
    for (const [, took, letter] of timesOf(leg)) {
      if (took <= 0) continue;
      const from = Math.min(WIDTH - 1, column(atMs));
      for (let at = from; at < Math.max(from + 1, column(atMs + took)); at += 1) row[at] = letter;
      atMs += took;
    }
    rows.push(`${`leg ${index + 1}`.padEnd(8)}|${row.join("")}|`);
  }
  return [...rows, `${" ".repeat(8)} 0${ms(endMs).padStart(WIDTH - 1)}`, `${" ".repeat(8)} q queue, ${PARTS.map(([name, letter]) => `${letter} ${name}`).join(", ")}`];
}

function ms(value: number): string {
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}
