// Bounds the time of each part of a leg. An error names the bound that was exceeded, and says where the time went.
import { ServiceError } from "../../common/errors.ts";
import { traitsOf } from "../../kv/index.ts";
import type { Instance, Pool } from "../pool/pool.ts";
import type { RelayLimits } from "../config.ts";
import type { RelayRequest } from "../request/request.ts";

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

/** Each quicker answer lowers the remembered slow pace by this fraction. */
const PACE_FORGOTTEN = 0.02;
/** Shorter answers don't count, because the transfer takes most of their time. */
const PACE_TOKENS = 16;

/**
 * Bounds the time of non-streaming answers. Nothing of such an answer arrives until it is complete. If one answer
 * stalls while its engine goes on with others (with NIXL, because its KV never arrives), only this bound reveals it.
 * The bound allows for the tokens that the answer may have, at the slowest pace seen lately on the instance.
 */
export class AnswerPaces {
  readonly #msPerToken = new WeakMap<Instance, number>();

  /** @param ms Time from prefill's answer to the last token. */
  seen(decode: Instance, ms: number, tokens: number): void {
    if (tokens < PACE_TOKENS) return;
    const known = this.#msPerToken.get(decode) ?? 0;
    this.#msPerToken.set(decode, Math.max(ms / tokens, known * (1 - PACE_FORGOTTEN)));
  }

  /** Infinity if no pace or no token limit is known: then only the request's deadline applies. */
  boundMs({ answerFloorMs, answerSlack }: RelayLimits, decode: Instance, maxTokens: number | undefined): number {
    const msPerToken = this.#msPerToken.get(decode);
    const tokens = maxTokens ?? (decode.info.maxModelLen > 0 ? decode.info.maxModelLen : Infinity);
    if (answerSlack === 0 || msPerToken === undefined) return Infinity;
    return Math.ceil(answerFloorMs + answerSlack * tokens * msPerToken);
  }
}

/** A reservation costs a decode instance nothing, so after this long without an answer the leg is tried elsewhere. */
export const RESERVE_TIMEOUT_MS = 2_000;

/** The slowest pace at which a long body may reach an instance that many of them go to at once: 1 MiB a second. */
const BODY_BYTES_PER_MS = 1_048;

/** Whether the instance lives is seen by its heartbeat meanwhile. @param answerMs Bound for a body of no length. */
export function reserveBoundMs(answerMs: number, body: Buffer): number {
  return answerMs + Math.floor(body.length / BODY_BYTES_PER_MS);
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
