// A receipt in words, with a line of time for each attempt.
import { Outcome, type Leg, type Receipt } from "#gen/tandem/router/v1/router_pb.js";
import { bytesText } from "../../common/bytes-text.ts";

/** Characters of the line of time. */
const WIDTH = 60;

interface Part {
  readonly name: string;
  readonly letter: string;
  readonly tookMs: number;
}

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
  unpaired: "decode computed the prompt as well, because no prefill instance was left",
  unpaired_short: "decode computed the short prompt as well",
  "stale-registry": "the registry was away, and the instances known before were used",
};

export function storyOf(receipt: Receipt): string {
  const { legs, queueMs, ttftMs, totalMs } = receipt;
  const lines = [heading(receipt), summary(receipt), ""];
  const event = (atMs: number, text: string): void => void lines.push(`${ms(atMs).padStart(10)}  ${text}`);
  event(0, `arrived at ${new Date(Number(receipt.startedUnixMs)).toISOString()}${scheduling(receipt)}`);
  if (queueMs >= 0.05) event(queueMs, "let in, after the queue");
  const events: [number, string][] = legs.map((leg, index) => [
    leg.startedMs,
    attempt(leg, index, legs.length, receipt.stream),
  ]);
  if (ttftMs > 0) events.push([ttftMs, receipt.stream ? "first bytes to the client" : "answer to the client"]);
  for (const [atMs, text] of events.sort(([a], [b]) => a - b)) event(atMs, text);
  if (totalMs > 0) event(totalMs, `ended${receipt.error === "" ? "" : `: ${receipt.errorCode}: ${receipt.error}`}`);
  if (receipt.fallbacks.length > 0) {
    lines.push("", "Otherwise than planned:");
    for (const text of receipt.fallbacks)
      lines.push(`  ${text}: ${MEANINGS[text] ?? MEANINGS[text.split(":")[0]!] ?? "see the documentation"}`);
  }
  if (legs.length > 0) lines.push("", ...timeline(receipt));
  return lines.join("\n");
}

function heading({ requestId, path, model, stream }: Receipt): string {
  return `${requestId}: ${path}, model ${model}${stream ? ", streamed" : ""}`;
}

function summary({ outcome, status, totalMs, legs, bodyBytes }: Receipt): string {
  const parts = [
    `${OUTCOMES[outcome] ?? "Ended"}${status > 0 ? ` with status ${status}` : ""}${totalMs > 0 ? ` after ${ms(totalMs)}` : ""}`,
  ];
  // Attempts that failed left nothing in the answer. Where none came through, the last tells how far it got.
  const whole = legs.filter((leg) => leg.error === "");
  const counted = whole.length > 0 ? whole : legs.slice(-1);
  const last = counted.at(-1);
  if (last !== undefined && last.promptTokens > 0) {
    const cached = last.cachedTokens === undefined ? "" : ` (${last.cachedTokens} cached)`;
    const written = counted.reduce((sum, leg) => sum + leg.completionTokens, 0);
    parts.push(
      counted.length === 1
        ? `${last.promptTokens} prompt tokens${cached}, ${written} of answer`
        : `${counted.length} answers, ${written} tokens together`,
    );
  }
  // What failed attempts moved was moved all the same.
  const moved = legs.filter((leg) => leg.kvBytes !== undefined);
  if (moved.length > 0)
    parts.push(`${bytesText(moved.reduce((sum, leg) => sum + Number(leg.kvBytes), 0))} of KV moved`);
  parts.push(`${bodyBytes} bytes sent`);
  return `${parts.join("; ")}.`;
}

function scheduling({ tenant, priority }: Receipt): string {
  const parts = [...(tenant === "" ? [] : [`tenant ${tenant}`]), ...(priority === 0 ? [] : [`priority ${priority}`])];
  return parts.length === 0 ? "" : ` (${parts.join(", ")})`;
}

/** One line what became of it, and below that where it ran and where its time went. */
function attempt(leg: Leg, index: number, count: number, stream: boolean): string {
  const times = partsOf(leg, stream)
    .filter(({ tookMs }) => tookMs > 0)
    .map(({ name, tookMs }) => `${name} ${ms(tookMs)}`);
  const lines = [
    `${count === 1 ? "leg" : `leg ${index + 1} of ${count}`}${leg.error === "" ? "" : `: ended by ${leg.error}`}`,
    leg.prefillInstanceId === "" ? "no prefill: decode alone" : `prefill on ${leg.prefillInstanceId}`,
    `decode on ${leg.decodeInstanceId || "none"}`,
    ...(times.length === 0 ? [] : [times.join(", ")]),
  ];
  return lines.join(`\n${" ".repeat(14)}`);
}

/** An answer in one piece has no first token that anyone sees: transfer and decode are one part then. */
function partsOf({ reserveMs, prefillMs, transferMs, decodeMs }: Leg, stream: boolean): Part[] {
  const before: Part[] = [
    { name: "reserve", letter: "r", tookMs: reserveMs },
    { name: "prefill", letter: "P", tookMs: prefillMs },
  ];
  return stream
    ? [
        ...before,
        { name: "transfer", letter: "t", tookMs: transferMs },
        { name: "decode", letter: "D", tookMs: decodeMs },
      ]
    : [...before, { name: "transfer and decode", letter: "D", tookMs: transferMs + decodeMs }];
}

/** One row an attempt, all on the same scale. */
function timeline({ legs, queueMs, totalMs, stream }: Receipt): string[] {
  const parts = legs.map((leg) => partsOf(leg, stream));
  const endMs = Math.max(
    totalMs,
    ...legs.map((leg, index) => leg.startedMs + parts[index]!.reduce((sum, { tookMs }) => sum + tookMs, 0)),
    0.001,
  );
  const column = (atMs: number): number => Math.min(WIDTH, Math.round((atMs / endMs) * WIDTH));
  const rows: string[] = [];
  if (column(queueMs) > 0) rows.push(`${"queue".padEnd(8)}|${"q".repeat(column(queueMs)).padEnd(WIDTH, ".")}|`);
  for (const [index, leg] of legs.entries()) {
    let atMs = leg.startedMs;
    const row = Array<string>(WIDTH).fill(".");
    for (const { tookMs, letter } of parts[index]!) {
      if (tookMs <= 0) continue;
      // A part that took any time at all is seen.
      const from = Math.min(WIDTH - 1, column(atMs));
      for (let at = from; at < Math.max(from + 1, column(atMs + tookMs)); at += 1) row[at] = letter;
      atMs += tookMs;
    }
    rows.push(`${`leg ${index + 1}`.padEnd(8)}|${row.join("")}|`);
  }
  const legend = parts[0]!.map(({ name, letter }) => `${letter} ${name}`).join(", ");
  return [...rows, `${" ".repeat(8)} 0${ms(endMs).padStart(WIDTH - 1)}`, `${" ".repeat(8)} q queue, ${legend}`];
}

function ms(value: number): string {
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}
