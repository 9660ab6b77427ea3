// Bounds the time of each part of a leg. An error names the bound that was exceeded, and says where the time went.
import { ServiceError } from "../../common/errors.ts";
import { traitsOf } from "../../kv/index.ts";
import type { Instance, Pool, Side } from "../pool/pool.ts";
import type { RelayLimits } from "../config.ts";
import type { RelayRequest } from "../request/request.ts";
import type { LegContext } from "./context.ts";
import type { Pace } from "./paces.ts";

/**
 * The bound follows from the prompt's length, the tokens that wait before it and the rate seen on the instance. It
 * never exceeds the fixed limit, which also applies while no rate is known.
 *
 * @param tokens Tokens of this prompt and of all that wait before it.
 */
export function prefillBoundMs(
  { prefillTimeoutMs, prefillFloorMs, prefillSlack }: RelayLimits,
  prefill: Instance,
  tokens: number,
): number {
  if (prefillSlack === 0 || prefill.tokensPerMs === 0) return prefillTimeoutMs;
  return Math.min(prefillTimeoutMs, Math.ceil(prefillFloorMs + (prefillSlack * tokens) / prefill.tokensPerMs));
}

/** Extra time for a transfer that first sets up the connection of the two. 0 if KV has moved between them before. */
export function setUpMs(books: Pick<Pool, "isWarm">, prefill: Instance, decode: Instance): number {
  return books.isWarm(prefill, decode) ? 0 : (traitsOf(decode.info.connector)?.firstTransferMs ?? 0);
}

/** A bound that is learned is this many times what is usual, and at least so much: an engine may pause to compile. */
const TRANSFER = { slack: 10, floorMs: 10_000 };
const STREAM = { slack: 20, floorMs: 10_000 };
/** A stream is looked at this often, because its bound may have been learned meanwhile. */
export const STREAM_LOOK_MS = STREAM.floorMs;

/** A first byte passes so often through the loops of router and instance. */
const LOOP_PASSES = 8;

/** Extra time for a host that is short of processor time, at either end. */
export function strainMs({ loop }: Pick<LegContext, "loop">, { load }: Instance): number {
  return Math.ceil(LOOP_PASSES * (loop.delayMs + (load?.loopDelayMs ?? 0)));
}

/**
 * From the start of decode to its first token. A request that waits in the engine, as its load shows, gets the whole
 * limit, and so does one whose prompt decode computes.
 */
export function transferBoundMs(
  context: LegContext,
  decode: Instance,
  o: { readonly firstMs: number; readonly unpaired: boolean },
): number {
  const limitMs = context.limits.current.transferTimeoutMs;
  const usualMs = o.unpaired || isQueuing(decode) ? undefined : context.paces.of(decode).usualFirstMs;
  return Math.max(learned(limitMs, usualMs, TRANSFER) + strainMs(context, decode), o.firstMs);
}

/** Between two messages of a stream. */
export function streamBoundMs(context: LegContext, decode: Instance): number {
  const limitMs = context.limits.current.stallMs;
  const usualMs = isQueuing(decode) ? undefined : context.paces.of(decode).usualGapMs;
  return learned(limitMs, usualMs, STREAM) + strainMs(context, decode);
}

function learned(limitMs: number, usualMs: number | undefined, { slack, floorMs }: typeof STREAM): number {
  return usualMs === undefined ? limitMs : Math.min(limitMs, Math.max(floorMs, Math.ceil(slack * usualMs)));
}

/** Whether requests wait inside its engine. */
function isQueuing({ load }: Instance): boolean {
  return (load?.engineWaiting ?? 0) > 0;
}

/** Times that the tokens of a whole answer may take, at the slowest pace seen lately. */
const ANSWER_SLACK = 10;

/**
 * Bounds the time of a whole answer whose instance doesn't report tokens: nothing arrives until it is complete. If one
 * answer stalls while its engine goes on with others (with NIXL, because its KV never arrives), only this bound reveals
 * it. The bound is what a stream may be silent for in all, and the time of the tokens that the answer may have. Infinity
 * if no pace or no token limit is known: then only the request's deadline applies.
 */
export function answerBoundMs(
  { transferTimeoutMs, stallMs }: RelayLimits,
  decode: Instance,
  { answerMsPerToken }: Pick<Pace, "answerMsPerToken">,
  maxTokens: number | undefined,
): number {
  const tokens = maxTokens ?? (decode.info.maxModelLen > 0 ? decode.info.maxModelLen : Infinity);
  if (answerMsPerToken === undefined) return Infinity;
  return Math.ceil(transferTimeoutMs + stallMs + ANSWER_SLACK * tokens * answerMsPerToken);
}

/** What a leg waits for, before the first byte of its answer. */
export interface Wait {
  readonly part: "reserve" | "prefill" | "transfer";
  readonly side: Side;
  readonly on: Instance;
  readonly sinceMs: number;
  /** After this long it is worth trying another pair as well. */
  readonly patienceMs: number;
  /** Whether the instance has brought another leg forward since. */
  readonly moved: boolean;
  /** Whether requests wait inside its engine. */
  readonly queuing: boolean;
  /** Time that the wait may take beyond its patience for a known reason: the first transfer of two engines. */
  readonly firstMs: number;
}

/**
 * Patience is this many times what is usual, within limits; and a fixed time while little is known. It grows little with
 * strain, because a second attempt costs little, within its budget.
 */
const PATIENCE = { slack: 2, floorMs: 500, limitMs: 10_000, freshMs: 1_000, strainLimitMs: 500 };
/** Rate of an instance that has computed nothing yet: that of a slow GPU, in tokens per millisecond. */
const FRESH_RATE = 2;
/** No leg is late sooner than this. */
export const SOONEST_LATE_MS = PATIENCE.floorMs;

/** @param tokens Prompt tokens to compute first, those that wait before included. */
export function waitFor(
  context: LegContext,
  part: Wait["part"],
  on: Instance,
  o: { readonly sinceMs: number; readonly tokens?: number; readonly firstMs?: number },
): Wait {
  const { sinceMs, tokens = 0, firstMs = 0 } = o;
  const { usualFirstMs, fleetTokensPerMs, movedAtMs } = context.paces.of(on);
  const { slack, floorMs, limitMs, freshMs, strainLimitMs } = PATIENCE;
  const usualMs = part === "reserve" ? undefined : usualFirstMs;
  const baseMs = usualMs === undefined ? freshMs : Math.min(limitMs, Math.max(floorMs, slack * usualMs));
  const promptMs = tokens === 0 ? 0 : (slack * tokens) / (on.tokensPerMs || fleetTokensPerMs || FRESH_RATE);
  return {
    part,
    side: part === "prefill" ? "prefill" : "decode",
    on,
    sinceMs,
    patienceMs: Math.ceil(baseMs + promptMs + Math.min(strainLimitMs, strainMs(context, on))),
    moved: movedAtMs >= sinceMs,
    queuing: isQueuing(on),
    firstMs,
  };
}

/** A reservation costs a decode instance nothing, so after this long without an answer the leg is tried elsewhere. */
export const RESERVE_TIMEOUT_MS = 2_000;

/** The slowest pace at which a long body may reach an instance that many of them go to at once: 1 MiB a second. */
const BODY_BYTES_PER_MS = 1_048;

/** Whether the instance lives is seen by its heartbeat meanwhile. */
export function reserveBoundMs(
  context: Pick<LegContext, "reserveTimeoutMs" | "loop">,
  decode: Instance,
  body: Buffer,
): number {
  return context.reserveTimeoutMs + strainMs(context, decode) + Math.floor(body.length / BODY_BYTES_PER_MS);
}

/** What an instance must send within a bound. `answer`: a whole non-streaming answer. */
export type QuietPart = "prefill" | "reserve" | "transfer" | "answer" | "decode";

const WORDS: Record<QuietPart, string> = {
  prefill: "Prefill did not end within",
  reserve: "The decode instance did not answer the reservation for",
  transfer: "No token came after prefill for",
  answer: "The non-streaming answer was not complete within",
  decode: "The decode instance sent nothing for",
};

/** @param where Where the time went so far. */
export function stalled(part: QuietPart, limitMs: number, where: string): ServiceError {
  return new ServiceError("leg_stalled", `${WORDS[part]} ${limitMs} ms (${where}).`);
}

/** The router's error for a deadline should come before an instance's error for the same deadline. */
const DEADLINE_SLACK_MS = 2_000;

/** The timeout that is sent to an instance, from the request's deadline; undefined if the request has none. */
export function timeLeftMs({ deadlineMs }: RelayRequest, nowMs: number): number | undefined {
  return deadlineMs === undefined ? undefined : Math.max(0, deadlineMs - nowMs) + DEADLINE_SLACK_MS;
}
