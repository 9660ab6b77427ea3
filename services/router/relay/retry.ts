// Decides what a choice does after a failed attempt: retry, wait or give up. Pure: no clock, no instances.
// test/router/relay/retry.test.ts explores every path that a choice can take.
import { FAILURES, type FailureCode } from "../../common/errors.ts";
import type { Side } from "../pool/pool.ts";
import type { Exclusion } from "../placement/placement.ts";

/** An attempt that failed. */
export interface Failed {
  readonly code: FailureCode;
  /** The instance that failed. */
  readonly side: Side;
  /** Whether any of the answer reached the client. */
  readonly delivered: boolean;
  /** Whether another attempt is expected to write the delivered bytes again. */
  readonly repeatable: boolean;
  readonly decodeFirst: boolean;
}

/** What a choice has used up. */
export interface Spent {
  readonly retries: number;
  /** Attempts that an instance refused before it did any work. */
  readonly refusals: number;
}

/**
 * Refusals that cost a choice no retry. When engines end, routers learn of it a moment later, and legs that are placed
 * meanwhile are refused at once. Many engines may end together.
 */
const FREE_REFUSALS = 16;

export interface RetryRules {
  readonly limit: number;
  /** Whether fallbacks are forbidden. */
  readonly strict: boolean;
  /** Takes a retry from the router's budget. Called last. */
  takeFromBudget(): boolean;
}

export type Next =
  | { readonly kind: "give-up"; readonly because: "delivered" | "never" | "strict" | "limit" | "budget" }
  /** The side refused before any work was done, so the choice waits for a slot there, which is not a retry. */
  | { readonly kind: "wait"; readonly busy: Side }
  /** `refused`: the side takes no legs until its next report. The retry is free. */
  | {
      readonly kind: "retry";
      readonly exclude: Readonly<Partial<Record<Side, Exclusion>>>;
      readonly refused?: Side;
    };

export function afterFailure(
  { code, side, delivered, repeatable, decodeFirst }: Failed,
  spent: Spent,
  rules: RetryRules,
): Next {
  if (delivered && !repeatable) return giveUp("delivered");
  if (code === "instance_busy") {
    // With prefill first, the search for a decode instance has already waited.
    return side === "decode" && !decodeFirst ? giveUp("never") : { kind: "wait", busy: side };
  }
  const { retry } = FAILURES[code];
  const isFree = code === "instance_unavailable" && !delivered;
  const refusal = refused(retry === "never", isFree, spent, rules);
  if (refusal !== undefined) return refusal;
  const both = retry === "both legs";
  const exclude: Partial<Record<Side, Exclusion>> = {};
  if (side === "prefill" || both) exclude.prefill = "failed";
  if (side === "decode" || both) exclude.decode = "failed";
  if (code === "leg_stalled") exclude[side] = "wedged";
  return isFree ? { kind: "retry", exclude, refused: side } : { kind: "retry", exclude };
}

/** Prefill first: decides after a decode instance refused the KV, which another one can still use. */
export function afterRefusal(code: FailureCode, spent: Spent, rules: RetryRules): Next {
  if (code === "instance_busy") return { kind: "wait", busy: "decode" };
  const isFree = code === "instance_unavailable";
  const next: Next = {
    kind: "retry",
    exclude: { decode: "failed" },
    ...(isFree ? { refused: "decode" as const } : {}),
  };
  return refused(false, isFree, spent, rules) ?? next;
}

function refused(
  never: boolean,
  isFree: boolean,
  { retries, refusals }: Spent,
  { limit, strict, takeFromBudget }: RetryRules,
): Next | undefined {
  if (never) return giveUp("never");
  if (strict) return giveUp("strict");
  if (limit === 0 || (isFree ? refusals >= FREE_REFUSALS : retries >= limit)) return giveUp("limit");
  if (isFree) return undefined;
  return takeFromBudget() ? undefined : giveUp("budget");
}

function giveUp(because: Extract<Next, { kind: "give-up" }>["because"]): Next {
  return { kind: "give-up", because };
}
