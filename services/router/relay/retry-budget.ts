// How many retries the whole router may make: so many for each request that comes, and a few in every second. While a
// few instances fail it is never felt; while all fail, retries would multiply the load on those that come back first.
// Source: the retry budget of Finagle and Linkerd; here one token bucket.
import type { Clock } from "../../common/clock.ts";
import type { Live } from "../../common/config.ts";

export interface RetryBudget {
  /** A request has come. */
  earn(): void;
  /** Takes one retry out. False: there is none. */
  take(): boolean;
}

/** Retries that there are in each second beside those that requests earn. */
const RETRIES_PER_S = 10;
/** What may be saved up: the earnings of so many seconds, and of so many requests. */
const SAVED_S = 2;
const SAVED_REQUESTS = 500;

export function createRetryBudget(o: {
  /** `retryRatio`: what one request earns. */
  readonly limits: Live<{ readonly retryRatio: number }>;
  readonly clock: Clock;
  /** Default 10. */
  readonly perS?: number | undefined;
}): RetryBudget {
  const { limits, clock, perS = RETRIES_PER_S } = o;
  const timedLimit = perS * SAVED_S;
  let timed = timedLimit;
  let timedAtMs = clock.nowMs();
  let earned = 0;

  return {
    earn() {
      const { retryRatio } = limits.current;
      earned = Math.min(retryRatio * SAVED_REQUESTS, earned + retryRatio);
    },
    take() {
      const nowMs = clock.nowMs();
      timed = Math.min(timedLimit, timed + ((nowMs - timedAtMs) * perS) / 1000);
      timedAtMs = nowMs;
      // Rounding must not cost the fifth of five requests its retry.
      if (earned >= 1 - 1e-9) earned -= 1;
      else if (timed >= 1 - 1e-9) timed -= 1;
      else return false;
      return true;
    },
  };
}
