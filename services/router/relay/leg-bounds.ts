// How long each part of a leg may take. An error that one of them makes says which, and where the time went.
import { ServiceError } from "../../common/errors.ts";
import type { Member } from "../pool/pool.ts";
import type { RelayLimits } from "./request.ts";

/** Prompt tokens that `prefill` has to compute before the next one is done, as far as is known. */
export function waitingTokens(prefill: Member): number {
  return (prefill.load?.queuedTokens ?? 0) + prefill.placedTokens;
}

/**
 * By the prompt's length, what waits before it and the rate seen on that instance; the fixed limit where no rate is
 * known yet, and never more than that.
 *
 * @param tokens Of this prompt and all that wait before it.
 */
export function prefillBoundMs({ prefillTimeoutMs, prefillFloorMs, prefillSlack }: RelayLimits, prefill: Member, tokens: number): number {
  if (prefillSlack === 0 || prefill.tokensPerMs === 0) return prefillTimeoutMs;
  return Math.min(prefillTimeoutMs, Math.ceil(prefillFloorMs + (prefillSlack * tokens) / prefill.tokensPerMs));
}

export type QuietPart = "reserve" | "transfer" | "decode";

/** How long the decode instance may be quiet in each part. */
export function quietLimitMs(limits: RelayLimits, part: QuietPart): number {
  return part === "reserve" ? limits.reserveTimeoutMs : part === "transfer" ? limits.transferTimeoutMs : limits.stallMs;
}

const WORDS: Record<QuietPart, string> = {
  reserve: "The decode instance did not answer the reservation",
  transfer: "No token came after prefill",
  decode: "The decode instance sent nothing",
};

export function stalled(part: QuietPart, limitMs: number, where: string): ServiceError {
  return new ServiceError("leg_stalled", `${WORDS[part]} for ${limitMs} ms (${where}).`);
}

export function prefillStalled(boundMs: number, where: string, cause: unknown): ServiceError {
  return new ServiceError("leg_stalled", `Prefill did not end within ${boundMs} ms (${where}).`, { cause });
}
