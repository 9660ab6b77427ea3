// Decides when a second attempt is started beside one that is late. Work before the first byte is free to repeat, so
// another pair may as well answer; the attempt that delivers first wins, and the other one is settled like that of a
// client that left. Pure, but for the budget.
// Source: Dean and Barroso, The Tail at Scale, CACM 56(2), 2013: hedged requests, within a budget of a few percent.
import type { Live } from "../../common/config.ts";
import { FAILURES, type FailureCode } from "../../common/errors.ts";
import type { Wait } from "../leg/bounds.ts";
import type { RelayRequest } from "../request/request.ts";

/** A request of several choices is not hedged: each of its late choices would cost a hedge. */
export function mayHedge({ strict, choices, prompts }: RelayRequest, ratio: number): boolean {
  return ratio > 0 && strict !== true && choices * prompts === 1;
}

/** When to look again whether an attempt needs a hedge. `nowMs`: it needs one now. */
export function hedgeAtMs({ sinceMs, patienceMs, moved, queuing }: Wait, nowMs: number): number {
  const lateMs = sinceMs + patienceMs;
  if (nowMs < lateMs) return lateMs;
  // Elsewhere it would wait at the end of a queue that is as long, and this one moves.
  return queuing && moved ? nowMs + patienceMs : nowMs;
}

/** Whether the failure of one of two attempts ends the choice, because the other one would fail in the same way. */
export function endsBoth(code: FailureCode): boolean {
  return FAILURES[code].retry === "never" && code !== "no_instance";
}

/** Hedges that are saved at most, so that the first clients of an instance that hangs are all saved. */
const SAVED = 16;

/** @param limits `hedgeRatio` is the share of requests that may be hedged. */
export function createHedgeBudget(limits: Live<{ readonly hedgeRatio: number }>) {
  let left = SAVED;
  return {
    /** Adds a request's share. */
    earn(): void {
      left = Math.min(SAVED, left + limits.current.hedgeRatio);
    },
    /** Takes one hedge out. Returns false if the budget is used up. */
    take(): boolean {
      if (left < 1 - 1e-9) return false;
      left -= 1;
      return true;
    },
  };
}

export type HedgeBudget = ReturnType<typeof createHedgeBudget>;
