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
  /** Prompt tokens a millisecond, by the answers to its legs, for the time that prompts get then. 0: none was seen. */
  readonly legTokensPerMs?: number;
  /** Legs of them that wait for the first KV from a partner. Default 0. */
  readonly firstTransfers?: number;
}

export interface ProgressSample extends EngineWork {
  readonly nowMs: number;
  /** The engine's last report: tokens counted so far, and requests that wait for KV. Undefined before the first. */
  readonly counted: Pick<EngineGauges, "promptTokens" | "generationTokens" | "deferred"> | undefined;
}

/** Prompt tokens a second before any was seen: a small CPU. Too low finds a wedge late, too high kills what works. */
const FIRST_RATE = 100;
/** Prompts may take this multiple of the time at the observed rate, because long prompts cost more a token. */
const RATE_MARGIN = 4;
/** Longest time without a token, beside what prompts need, while a partner is known to be dead. */
const PARTNER_STALL_MS = 2_000;
/** Weight of a new observation. */
const RATE_WEIGHT = 0.2;
/** A tick that is late by this factor shows that this process was paused; it says nothing about the engine. */
const OWN_PAUSE_TICKS = 3;

export interface ProgressBounds {
  /** Longest time without a token, beside what prompts and KV need. */
  readonly stallMs: number;
  /**
   * What the engine is given on top while a request in it waits for its KV, by its own report or because it is the first
   * from a partner: that sets up their connection, and may hold up everything else in the engine, its report included. The router knows both engines and decides
   * which of them is late.
   */
  readonly kvWaitMs: number;
  readonly tickMs: number;
}

/** Returns a function that is called every `tickMs` and returns why the engine is taken for wedged, if it is. */
export function progressJudge({
  stallMs,
  kvWaitMs,
  tickMs,
}: ProgressBounds): (sample: ProgressSample) => string | undefined {
  /** The last moment at which it moved, or had nothing to do. */
  let sinceMs = 0;
  let judgedMs = -Infinity;
  let last: ProgressSample["counted"];
  let ratePerMs = FIRST_RATE / 1_000;
  /** Prompt tokens in it since then. Later prompts wait behind them and don't justify waiting longer. */
  let awaitedTokens = 0;

  return ({ nowMs, legs, promptTokens, partnerIsGone = false, legTokensPerMs = 0, firstTransfers = 0, counted }) => {
    const paused = nowMs - judgedMs > tickMs * OWN_PAUSE_TICKS;
    const moved =
      counted !== undefined &&
      (counted.promptTokens !== last?.promptTokens || counted.generationTokens !== last.generationTokens);
    if (moved && !paused && last !== undefined && counted.promptTokens > last.promptTokens) {
      const seen = (counted.promptTokens - last.promptTokens) / Math.max(tickMs, nowMs - sinceMs);
      ratePerMs += (seen - ratePerMs) * RATE_WEIGHT;
    }
    judgedMs = nowMs;
    last = counted ?? last;
    if (legs === 0 || moved || paused) {
      sinceMs = nowMs;
      awaitedTokens = legs === 0 ? 0 : promptTokens;
      return undefined;
    }
    if (awaitedTokens === 0) awaitedTokens = promptTokens;
    const frozenMs = nowMs - sinceMs;
    const deferred = last?.deferred ?? 0;
    const patienceMs = partnerIsGone ? Math.min(PARTNER_STALL_MS, stallMs) : stallMs;
    // What was counted between two ticks is no more than what was asked for, and says little about an idle engine.
    const promptsMs = awaitedTokens / Math.max(ratePerMs, partnerIsGone ? legTokensPerMs : 0);
    const allowedMs = patienceMs + promptsMs * RATE_MARGIN + (deferred + firstTransfers > 0 ? kvWaitMs : 0);
    if (frozenMs < allowedMs) return undefined;
    const waiting = deferred > 0 ? `, ${deferred} waiting for KV` : "";
    const partner = partnerIsGone ? ", some for a decode engine that has died" : "";
    return `wedged: no token for ${(frozenMs / 1_000).toFixed(1)} s with ${legs} ${legs === 1 ? "request" : "requests"} in it${waiting}${partner}`;
  };
}
