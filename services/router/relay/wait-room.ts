// Where choices wait while every instance that could take them is busy. First come first served: each change of the
// pool lets in as many as there is room for, and looks at few more, since a change comes with every leg that ends.
import { asServiceError, ServiceError } from "../../common/errors.ts";
import type { Pool } from "../pool/pool.ts";

/** Waiters that are looked at in vain after one change. More than one: what each may use differs. */
const MISS_LIMIT = 8;

/** One wait. */
export interface Waiting {
  /** The refusal that it waits out. */
  readonly error: ServiceError;
  /** Leaves without a word. */
  end(): void;
}

export interface WaitRoom {
  /**
   * Takes what `pick` gives as soon as it gives something, now or later; `found` or `fail` is called once, unless the
   * wait is ended first. Returns the wait, undefined where there was none.
   *
   * @param pick Throws `instance_busy` where waiting may help.
   */
  find<T>(pick: () => T, found: (place: T) => void, fail: (error: ServiceError) => void): Waiting | undefined;
}

export function createWaitRoom(pool: Pool): WaitRoom {
  /** Looks again. False: still busy. */
  const waiters = new Set<() => boolean>();
  let off: (() => void) | undefined;

  const leave = (waiter: () => boolean): void => {
    waiters.delete(waiter);
    if (waiters.size > 0) return;
    off?.();
    off = undefined;
  };

  function onChange(): void {
    let misses = 0;
    // A copy, for one that is let in and refused at once comes back to the end of the queue.
    for (const waiter of [...waiters]) {
      if (!waiters.has(waiter) || waiter()) continue;
      misses += 1;
      if (misses === MISS_LIMIT) return;
    }
  }

  return {
    find(pick, found, fail) {
      const first = attempt(pick);
      if (!isBusy(first)) {
        if (first instanceof ServiceError) fail(first);
        else found(first);
        return undefined;
      }
      const waiter = (): boolean => {
        const place = attempt(pick);
        if (isBusy(place)) return false;
        leave(waiter);
        if (place instanceof ServiceError) fail(place);
        else found(place);
        return true;
      };
      waiters.add(waiter);
      off ??= pool.onChange(onChange);
      return { error: first, end: () => leave(waiter) };
    },
  };
}

function attempt<T>(pick: () => T): T | ServiceError {
  try {
    return pick();
  } catch (thrown) {
    return asServiceError(thrown);
  }
}

function isBusy(place: unknown): place is ServiceError {
  return place instanceof ServiceError && place.code === "instance_busy";
}
