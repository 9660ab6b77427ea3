// How many retries the whole router may make: so many for each request that comes, and a few in every second. While a
// few instances fail it is never felt; while all fail, retries would multiply the load on those that come back first.
// Source: the retry budget of Finagle and Linkerd; here one token bucket.
import type { Clock } from "../../common/clock.ts";

export interface RetryBudget {
  /** A request has come. */
  earn(): void;
  /** Takes one retry out. False: there is none. */
  take(): boolean;
}

/** What may be saved up: the earnings of so many seconds, and of so many requests. */
const SAVED_S = 2;
const SAVED_REQUESTS = 500;

export function createRetryBudget(o: {
  readonly ratio: number;
  readonly perS: number;
  readonly clock: Clock;
}): RetryBudget {
  const { ratio, perS, clock } = o;
  const timedLimit = perS * SAVED_S;
  const earnedLimit = ratio * SAVED_REQUESTS;
  let timed = timedLimit;
  let timedAtMs = clock.nowMs();
  let earned = 0;

  return {
    earn() {
      earned = Math.min(earnedLimit, earned + ratio);
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
