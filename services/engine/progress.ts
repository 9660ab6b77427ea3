// Whether an engine makes progress, judged by its counters and not by its health report: a wedged vLLM answers /health
// with 200 and takes new requests forever. Its token counters stop while it holds requests.
// Source: protocol notes on vLLM 0.23, P2P NCCL: a missing peer stops the engine core, the API server lives on.
import type { EngineGauges } from "./metrics-text.ts";

/** What an instance has given to its engine. */
export interface EngineWork {
  /** Legs that wait for nothing but the engine. A leg that a slow client holds back is not counted. */
  readonly legs: number;
  /** Prompt tokens of them that are still to be computed, as far as known. */
  readonly promptTokens: number;
  /**
   * Some of them send KV to an engine that has died. With P2P NCCL this wedges the engine, so a stall is believed sooner.
   */
  readonly partnerIsGone?: boolean;
  /** Prompt tokens a millisecond, by the answers to its legs, for the time that prompts get. 0: none was seen. */
  readonly legTokensPerMs?: number;
  /** Legs of them that wait for the first KV from a partner. Default 0. */
  readonly firstTransfers?: number;
}

export interface ProgressSample extends EngineWork {
  readonly nowMs: number;
  /** The engine's last report: tokens counted so far, and requests that wait for KV. Undefined before the first. */
  readonly counted: Pick<EngineGauges, "promptTokens" | "generationTokens" | "deferred"> | undefined;
  /** When it was asked for that report. Left out: just now. */
  readonly askedMs?: number;
}

/** Prompt tokens a second before any was seen: a small CPU. Too low finds a wedge late, too high kills what works. */
const FIRST_RATE = 100;
/** Prompts may take this multiple of the time at the observed rate, because long prompts cost more a token. */
const RATE_MARGIN = 4;
/**
 * Longest time without a token while a partner is known to be dead, and what prompts are given on top at most. An engine
 * that has KV for a dead partner hangs on it once it comes to it, however fast it is. Only one that had just sent the
 * last of it answers, and that within one step.
 */
const PARTNER_STALL_MS = 1_000;
const PARTNER_PROMPTS_MS = 3_000;
const PARTNER_RATE_MARGIN = 2;
/** Weight of a new observation. */
const RATE_WEIGHT = 0.2;
/** A tick that is late by this factor shows that this process was paused; it says nothing about the engine. */
const OWN_PAUSE_TICKS = 3;

export interface ProgressBounds {
  /** Longest time without a token, where prompts and KV don't need more. */
  readonly stallMs: number;
  /**
   * What the engine is given on top while a request in it waits for its KV, by its own report or because it is the first
   * from a partner: that sets up their connection, and may hold up everything else in the engine, its report included. The router knows both engines and decides
   * which of them is late.
   */
  readonly kvWaitMs: number;
  readonly tickMs: number;
  /**
   * Whether the time without a token adds up over requests that left one after the other, with pauses in between: routers
   * hedge a request that waits in vain, and take it away after a second or two. Not for prompts, which a client that
   * leaves early may have stopped. Default false.
   */
  readonly stallsAddUp?: boolean;
}

export type Progress =
  /** It has moved, or has nothing to do, or may take its time. */
  | { readonly kind: "sound" }
  /** A partner has died to which it sends KV, and it has not moved since. It should get no new legs. */
  | { readonly kind: "doubtful" }
  /** Nothing that runs in it would ever end. */
  | { readonly kind: "wedged"; readonly why: string };

const SOUND: Progress = { kind: "sound" };
const DOUBTFUL: Progress = { kind: "doubtful" };

/** Returns a function that is called every `tickMs`, or more often, and judges the engine. */
export function progressJudge({
  stallMs,
  kvWaitMs,
  tickMs,
  stallsAddUp = false,
}: ProgressBounds): (sample: ProgressSample) => Progress {
  /** The last moment at which it moved, or had nothing to do. */
  let sinceMs = 0;
  let judgedMs = -Infinity;
  let last: ProgressSample["counted"];
  let ratePerMs = FIRST_RATE / 1_000;
  let isRateSeen = false;
  /** Prompt tokens in it since then. Later prompts wait behind them and don't justify waiting longer. */
  let awaitedTokens = 0;
  /** A partner has died, and it has not moved since. */
  let doubtful = false;
  let partnerWasGone = false;
  /** From the death of a partner until a report that was asked for after it: what that counts may be from before. */
  let unknownSinceMs = Infinity;

  return (sample) => {
    const { nowMs, legs, promptTokens, partnerIsGone = false, legTokensPerMs = 0, firstTransfers = 0 } = sample;
    const { counted, askedMs = nowMs } = sample;
    const paused = nowMs - judgedMs > tickMs * OWN_PAUSE_TICKS;
    // It had nothing to do, which says nothing.
    if (stallsAddUp && legs === 0) sinceMs += nowMs - judgedMs;
    const justGone = partnerIsGone && !partnerWasGone;
    partnerWasGone = partnerIsGone;
    if (justGone) unknownSinceMs = nowMs;
    else if (!partnerIsGone) unknownSinceMs = Infinity;
    const isBaseline = unknownSinceMs !== Infinity;
    if (counted !== last && askedMs > unknownSinceMs) unknownSinceMs = Infinity;
    const moved =
      !isBaseline &&
      counted !== undefined &&
      (counted.promptTokens !== last?.promptTokens || counted.generationTokens !== last.generationTokens);
    if (moved && !paused && last !== undefined && counted.promptTokens > last.promptTokens) {
      const seen = (counted.promptTokens - last.promptTokens) / Math.max(tickMs, nowMs - sinceMs);
      ratePerMs += (seen - ratePerMs) * RATE_WEIGHT;
      isRateSeen = true;
    }
    judgedMs = nowMs;
    last = counted ?? last;
    doubtful = justGone || (doubtful && partnerIsGone && (paused || !moved));
    if ((legs === 0 && !stallsAddUp) || moved || paused || justGone) {
      sinceMs = nowMs;
      awaitedTokens = legs === 0 ? 0 : promptTokens;
      return doubtful ? DOUBTFUL : SOUND;
    }
    if (legs === 0) return SOUND;
    if (awaitedTokens === 0) awaitedTokens = promptTokens;
    const frozenMs = nowMs - sinceMs;
    // What an engine that reports no more said of itself before does not hold for ever.
    const deferred = nowMs - askedMs < stallMs ? (last?.deferred ?? 0) : 0;
    const kvMs = deferred + firstTransfers > 0 ? kvWaitMs : 0;
    // What was counted between two ticks is no more than what was asked for, and says little about an idle engine.
    const promptsMs = awaitedTokens / Math.max(ratePerMs, legTokensPerMs);
    const marginMs = promptsMs * RATE_MARGIN;
    // An engine may compile at its first prompt.
    const usualMs = isRateSeen || legTokensPerMs > 0 ? Math.max(stallMs, marginMs) : stallMs + marginMs;
    const allowedMs = partnerIsGone
      ? Math.min(PARTNER_STALL_MS, stallMs) + Math.min(promptsMs * PARTNER_RATE_MARGIN, PARTNER_PROMPTS_MS)
      : usualMs + kvMs;
    if (frozenMs < allowedMs) {
      // After it moved it may come to the KV for the dead partner later.
      doubtful ||= partnerIsGone && frozenMs >= allowedMs / 2;
      return doubtful ? DOUBTFUL : SOUND;
    }
    const waiting = deferred > 0 ? `, ${deferred} waiting for KV` : "";
    const partner = partnerIsGone ? ", some for a decode engine that has died" : "";
    const why = `wedged: no token for ${(frozenMs / 1_000).toFixed(1)} s with ${legs} ${legs === 1 ? "request" : "requests"} in it${waiting}${partner}`;
    return { kind: "wedged", why };
  };
}
