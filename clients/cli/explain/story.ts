// A receipt in words, with a timeline of each attempt.
import { Outcome, type Leg, type Receipt } from "#gen/tandem/router/v1/router_pb.js";
import { bytesText } from "../../common/bytes-text.ts";

/** Width of the timeline, in characters. */
const WIDTH = 60;

const OUTCOMES: Readonly<Record<number, string>> = {
  [Outcome.UNSPECIFIED]: "Still running",
  [Outcome.COMPLETED]: "Completed",
  [Outcome.CANCELLED]: "Cancelled by its client",
  [Outcome.REFUSED]: "Refused",
  [Outcome.FAILED]: "Failed",
};

/** What each fallback means, by its full text or by the word before its first colon. */
const MEANINGS: Readonly<Record<string, string>> = {
  retry: "an attempt failed before its first byte and was retried",
  replay: "the stream broke, and another pair wrote the same bytes again, up to where the client was",
  "replay:diverged":
    "the stream broke, and the other pair wrote different bytes: the request ended with its first error",
  "replay:failed": "the stream broke, and could not be replayed in time: the request ended with its first error",
  hedge: "the first byte was late, so another pair was asked as well; the first to answer won",
  busy: "an instance had no free slot, and the request waited or went elsewhere",
  last_resort: "legs fail on an instance or a pair, which was used because too few others are left",
  "stale-view": "most instances were suspect together, so the router doubted itself and took none of them out",
  quarantined: "the same body made engines fail a moment ago, so it was refused at once",
  pair_avoided: "a pair on which legs fail was skipped",
  unpaired: "decode also computed the prompt, because no prefill instance was left",
  unpaired_short: "decode also computed the prompt, because the prompt is short",
  "stale-registry": "the registry was unavailable, and the last known instances were used",
};

export function storyOf(receipt: Receipt): string {
  const { legs, queueMs, ttftMs, totalMs, stream, fallbacks } = receipt;
  const events: [number, string][] = legs.map((leg, index) => [
    leg.startedMs,
    attempt(leg, legs.length === 1 ? "leg" : `leg ${index + 1} of ${legs.length}`, stream),
  ]);
  if (ttftMs > 0) events.push([ttftMs, stream ? "first bytes sent to the client" : "answer sent to the client"]);
  events.sort(([a], [b]) => a - b);
  if (queueMs >= 0.05) events.unshift([queueMs, "admitted from the queue"]);
  const arrival = new Date(Number(receipt.startedUnixMs)).toISOString();
  events.unshift([0, `arrived at ${arrival}${scheduling(receipt)}`]);
  if (totalMs > 0)
    events.push([totalMs, `ended${receipt.error === "" ? "" : `: ${receipt.errorCode}: ${receipt.error}`}`]);
  const meanings = fallbacks.map(
    (text) => `  ${text}: ${MEANINGS[text] ?? MEANINGS[text.split(":")[0]!] ?? "see the documentation"}`,
  );
  return [
    `${receipt.requestId}: ${receipt.path}, model ${receipt.model}${stream ? ", streamed" : ""}`,
    summary(receipt),
    "",
    ...events.map(([atMs, text]) => `${ms(atMs).padStart(10)}  ${text}`),
    ...(meanings.length === 0 ? [] : ["", "Fallbacks:", ...meanings]),
    ...(legs.length === 0 ? [] : ["", ...timeline(receipt)]),
  ].join("\n");
}

function summary({ outcome, status, totalMs, legs, bodyBytes }: Receipt): string {
  const parts = [
    `${OUTCOMES[outcome] ?? "Ended"}${status > 0 ? ` with status ${status}` : ""}${totalMs > 0 ? ` after ${ms(totalMs)}` : ""}`,
  ];
  // Failed attempts left nothing in the answer. If none succeeded, the last one shows how far the request got.
  const whole = legs.filter((leg) => leg.error === "");
  const counted = whole.length > 0 ? whole : legs.slice(-1);
  const last = counted.at(-1);
  if (last !== undefined && last.promptTokens > 0) {
    const cached = last.cachedTokens === undefined ? "" : ` (${last.cachedTokens} cached)`;
    const written = counted.reduce((sum, leg) => sum + leg.completionTokens, 0);
    parts.push(
      counted.length === 1
        ? `${last.promptTokens} prompt tokens${cached}, ${written} completion tokens`
        : `${counted.length} answers, ${written} tokens in total`,
    );
  }
  // KV that failed attempts moved counts too.
  const moved = legs.filter((leg) => leg.kvBytes !== undefined);
  if (moved.length > 0)
    parts.push(`${bytesText(moved.reduce((sum, leg) => sum + Number(leg.kvBytes), 0))} of KV moved`);
  parts.push(`${bodyBytes} bytes sent`);
  return `${parts.join("; ")}.`;
}

function scheduling({ tenant, priority }: Receipt): string {
  const parts = [tenant && `tenant ${tenant}`, priority && `priority ${priority}`].filter(Boolean);
  return parts.length === 0 ? "" : ` (${parts.join(", ")})`;
}

/** One line with the outcome; below it, where the attempt ran and where its time went. */
function attempt(leg: Leg, name: string, stream: boolean): string {
  const times = partsOf(leg, stream).flatMap(([, part, tookMs]) => (tookMs > 0 ? [`${part} ${ms(tookMs)}`] : []));
  const lines = [
    `${name}${leg.error === "" ? "" : `: ended by ${leg.error}`}`,
    leg.prefillInstanceId === "" ? "no prefill: decode unpaired" : `prefill on ${leg.prefillInstanceId}`,
    `decode on ${leg.decodeInstanceId || "none"}`,
    ...(times.length === 0 ? [] : [times.join(", ")]),
  ];
  return lines.join(`\n${" ".repeat(14)}`);
}

/** A part of an attempt: its letter in the timeline, its name, and its duration in milliseconds. */
type Part = readonly [string, string, number];

/** The first token of a non-streaming answer is not visible, so transfer and decode are one part there. */
function partsOf({ reserveMs, prefillMs, transferMs, decodeMs }: Leg, stream: boolean): Part[] {
  const answer: Part[] = stream
    ? [
        ["t", "transfer", transferMs],
        ["D", "decode", decodeMs],
      ]
    : [["D", "transfer and decode", transferMs + decodeMs]];
  return [["r", "reserve", reserveMs], ["P", "prefill", prefillMs], ...answer];
}

/** One row per attempt, all on the same scale. */
function timeline({ legs, queueMs, totalMs, stream }: Receipt): string[] {
  const parts = legs.map((leg) => partsOf(leg, stream));
  const endMs = Math.max(
    totalMs,
    ...legs.map((leg, index) => leg.startedMs + parts[index]!.reduce((sum, [, , tookMs]) => sum + tookMs, 0)),
    0.001,
  );
  const column = (atMs: number): number => Math.min(WIDTH, Math.round((atMs / endMs) * WIDTH));
  const rows: string[] = [];
  if (column(queueMs) > 0) rows.push(`${"queue".padEnd(8)}|${"q".repeat(column(queueMs)).padEnd(WIDTH, ".")}|`);
  for (const [index, leg] of legs.entries()) {
    let atMs = leg.startedMs;
    const row = Array<string>(WIDTH).fill(".");
    for (const [letter, , tookMs] of parts[index]!) {
      if (tookMs <= 0) continue;
      // A part that took any time at all gets a column.
      const from = Math.min(WIDTH - 1, column(atMs));
      for (let at = from; at < Math.max(from + 1, column(atMs + tookMs)); at += 1) row[at] = letter;
      atMs += tookMs;
    }
    rows.push(`${`leg ${index + 1}`.padEnd(8)}|${row.join("")}|`);
  }
  const legend = parts[0]!.map(([letter, name]) => `${letter} ${name}`).join(", ");
  return [...rows, `${" ".repeat(8)} 0${ms(endMs).padStart(WIDTH - 1)}`, `${" ".repeat(8)} q queue, ${legend}`];
}

function ms(value: number): string {
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}
