// Limits the retries of the whole router: each request adds to the budget, and so does each second. While a few
// instances fail, the budget is never used up. While all fail, it keeps retries from multiplying the load on those that
// come back first. Source: the retry budget of Finagle and Linkerd; here one token bucket.
import type { Clock } from "../../common/clock.ts";
import type { Live } from "../../common/config.ts";
import { calm, type Overload } from "../admission/overload.ts";

/** Retries per second on top of those that requests earn. */
const RETRIES_PER_S = 10;
/** Under overload the budget grows by this share. What was saved stays: it is there for the death of one instance. */
const OVERLOADED_SHARE = 0.25;
/** The budget saves at most the earnings of SAVED_S seconds and of SAVED_REQUESTS requests. */
const SAVED_S = 2;
const SAVED_REQUESTS = 500;

/**
 * @param limits `retryRatio` is the retries that one request earns.
 * @param perS Replaced by tests.
 */
export function createRetryBudget(
  limits: Live<{ readonly retryRatio: number }>,
  clock: Clock,
  perS = RETRIES_PER_S,
  overload: Pick<Overload, "on"> = calm(),
) {
  const timedLimit = perS * SAVED_S;
  let timed = timedLimit;
  let timedAtMs = clock.nowMs();
  let earned = 0;
  const share = (): number => (overload.on ? OVERLOADED_SHARE : 1);

  return {
    /** Adds a request's share. */
    earn(): void {
      const { retryRatio } = limits.current;
      earned = Math.min(retryRatio * SAVED_REQUESTS, earned + retryRatio * share());
    },
    /** Takes one retry out. Returns false if the budget is used up. */
    take(): boolean {
      const nowMs = clock.nowMs();
      timed = Math.min(timedLimit, timed + ((nowMs - timedAtMs) * perS * share()) / 1000);
      timedAtMs = nowMs;
      // The epsilon keeps rounding from costing the fifth of five requests its retry.
      if (earned >= 1 - 1e-9) earned -= 1;
      else if (timed >= 1 - 1e-9) timed -= 1;
      else return false;
      return true;
    },
  };
}

export type RetryBudget = ReturnType<typeof createRetryBudget>;
