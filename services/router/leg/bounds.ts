// How long each part of a leg may take. An error that one of them makes says which, and where the time went.
import { ServiceError } from "../../common/errors.ts";
import { firstTransferMs } from "../../kv/index.ts";
import type { Instance } from "../pool/pool.ts";
import type { Books } from "./books.ts";
import type { RelayLimits } from "../config.ts";
import type { RelayRequest } from "../request/request.ts";

/** Prompt tokens that `prefill` has to compute before the next one is done, as far as is known. */
export function waitingTokens(prefill: Instance): number {
  return (prefill.load?.queuedTokens ?? 0) + prefill.placedTokens;
}

/**
 * By the prompt's length, what waits before it and the rate seen on that instance; the fixed limit where no rate is
 * known yet, and never more than that.
 *
 * @param tokens Of this prompt and all that wait before it.
 */
export function prefillBoundMs(
  { prefillTimeoutMs, prefillFloorMs, prefillSlack }: RelayLimits,
  prefill: Instance,
  tokens: number,
): number {
  if (prefillSlack === 0 || prefill.tokensPerMs === 0) return prefillTimeoutMs;
  return Math.min(prefillTimeoutMs, Math.ceil(prefillFloorMs + (prefillSlack * tokens) / prefill.tokensPerMs));
}

/** What a transfer between the two may take because it sets up their connection. 0 where KV has moved before. */
export function setUpMs(books: Pick<Books, "isWarm">, prefill: Instance, decode: Instance): number {
  return books.isWarm(prefill, decode) ? 0 : firstTransferMs(decode.info.connector);
}

/** A pace that was slow once is forgotten by so much with each answer that was quicker. */
const PACE_FORGOTTEN = 0.02;
/** Of shorter answers the transfer is most of the time. */
const PACE_TOKENS = 16;

/**
 * How long answers in one piece may take. Nothing is seen of one until it is complete, so that one which stands still
 * alone, while its engine goes on with others, shows by this only (one whose KV never comes, with NIXL): by the tokens that
 * it may have, at the slowest pace seen lately on that instance.
 */
export class AnswerPaces {
  readonly #msPerToken = new WeakMap<Instance, number>();

  /** @param ms From prefill's answer to the last token. */
  seen(decode: Instance, ms: number, tokens: number): void {
    if (tokens < PACE_TOKENS) return;
    const known = this.#msPerToken.get(decode) ?? 0;
    this.#msPerToken.set(decode, Math.max(ms / tokens, known * (1 - PACE_FORGOTTEN)));
  }

  /** Infinity where no pace is known, or no limit of its tokens: then only the request's deadline holds. */
  boundMs({ answerFloorMs, answerSlack }: RelayLimits, decode: Instance, maxTokens: number | undefined): number {
    const msPerToken = this.#msPerToken.get(decode);
    const tokens = maxTokens ?? (decode.info.maxModelLen > 0 ? decode.info.maxModelLen : Infinity);
    if (answerSlack === 0 || msPerToken === undefined) return Infinity;
    return Math.ceil(answerFloorMs + answerSlack * tokens * msPerToken);
  }
}

/** A reservation costs a decode instance nothing. After this long without an answer the leg is tried elsewhere. */
export const RESERVE_TIMEOUT_MS = 2_000;

/** What a decode instance owes within a bound. `answer`: all of it, wanted in one piece. */
export type QuietPart = "reserve" | "transfer" | "answer" | "decode";

const WORDS: Record<QuietPart, string> = {
  reserve: "The decode instance did not answer the reservation for",
  transfer: "No token came after prefill for",
  answer: "The answer, wanted in one piece, was not complete within",
  decode: "The decode instance sent nothing for",
};

/** @param where The time went so far. */
export function stalled(part: QuietPart, limitMs: number, where: string): ServiceError {
  return new ServiceError("leg_stalled", `${WORDS[part]} ${limitMs} ms (${where}).`);
}

export function prefillStalled(boundMs: number, where: string): ServiceError {
  return new ServiceError("leg_stalled", `Prefill did not end within ${boundMs} ms (${where}).`);
}

/** A deadline's own error should come before the one that an instance makes of the same deadline. */
const DEADLINE_SLACK_MS = 2_000;

/** What an instance is told of the request's deadline; undefined where it has none. */
export function timeLeftMs({ deadlineMs }: RelayRequest, nowMs: number): number | undefined {
  return deadlineMs === undefined ? undefined : Math.max(0, deadlineMs - nowMs) + DEADLINE_SLACK_MS;
}
