// So many at once, and so many a second on average.
import type { Clock } from "../common/clock.ts";

export interface RateBucket {
  /** False if none is left. */
  take(): boolean;
}

export function rateBucket(
  { burst, perS }: { readonly burst: number; readonly perS: number },
  clock: Clock,
): RateBucket {
  let left: number = burst;
  let seenMs = clock.nowMs();
  return {
    take() {
      const nowMs = clock.nowMs();
      left = Math.min(burst, left + ((nowMs - seenMs) / 1000) * perS);
      seenMs = nowMs;
      if (left < 1) return false;
      left -= 1;
      return true;
    },
  };
}
