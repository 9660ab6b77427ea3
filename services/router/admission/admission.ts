// Whether a request may start: at once while there is room, else after a wait in one bounded queue, first come first
// served. A request that is refused or leaves costs the instances nothing. Every operation is O(1).
import type { Clock } from "../../common/clock.ts";
import { ServiceError } from "../../common/errors.ts";

/** Leave to run. */
export interface Place {
  /** Time spent in the queue. */
  readonly waitedMs: number;
  /** Gives the place back. Further calls do nothing. */
  release(): void;
}

export interface Admission {
  /**
   * Resolves when the request may start.
   *
   * @param gone Aborted when the client leaves: its place in the queue is free at once.
   * @param legs Pairs of legs it will run, one for each choice of each prompt. A request with more legs than there is
   *   room at all starts when nothing else runs, and has to pace itself.
   * @throws ServiceError `queue_full`, `instance_busy` after the queue's timeout, `cancelled` when `gone`
   */
  acquire(gone: AbortSignal, legs?: number): Promise<Place>;
  /** The capacity may have changed. */
  poke(): void;
  /** Legs of the requests that run. */
  readonly running: number;
  /** Requests in the queue. */
  readonly waiting: number;
}

/** One request in the queue: a link of a list, so that any of them can leave without a search. */
interface Waiter {
  readonly legs: number;
  readonly sinceMs: number;
  readonly admit: () => void;
  before: Waiter | undefined;
  after: Waiter | undefined;
}

/**
 * @param o.capacity Legs that may run at once, now.
 * @param o.queueLimit Requests that may wait. Read for each request, as the next one is.
 * @param o.queueTimeoutMs Longest wait.
 */
export function createAdmission(o: {
  capacity(): number;
  queueLimit: number;
  queueTimeoutMs: number;
  clock: Clock;
}): Admission {
  const { clock } = o;
  let running = 0;
  let waiting = 0;
  let first: Waiter | undefined;
  let last: Waiter | undefined;

  function fits(legs: number): boolean {
    const capacity = o.capacity();
    return running + legs <= capacity || (running === 0 && capacity > 0);
  }

  function place(legs: number, waitedMs: number): Place {
    running += legs;
    let held = true;
    return {
      waitedMs,
      release() {
        if (!held) return;
        held = false;
        running -= legs;
        poke();
      },
    };
  }

  function poke(): void {
    // Only the head is asked: a large request must not be overtaken for ever by small ones.
    while (first !== undefined && fits(first.legs)) first.admit();
  }

  function enqueue(waiter: Waiter): void {
    waiter.before = last;
    if (last === undefined) first = waiter;
    else last.after = waiter;
    last = waiter;
    waiting += 1;
  }

  function unlink(waiter: Waiter): void {
    if (waiter.before === undefined) first = waiter.after;
    else waiter.before.after = waiter.after;
    if (waiter.after === undefined) last = waiter.before;
    else waiter.after.before = waiter.before;
    waiting -= 1;
  }

  function wait(gone: AbortSignal, legs: number): Promise<Place> {
    return new Promise((resolve, reject) => {
      const sinceMs = clock.nowMs();
      const leave = (): void => {
        unlink(waiter);
        timer.cancel();
        gone.removeEventListener("abort", onGone);
      };
      const onGone = (): void => {
        leave();
        reject(cancelled());
        poke(); // The one behind it may fit.
      };
      const waiter: Waiter = {
        legs,
        sinceMs,
        before: undefined,
        after: undefined,
        admit: () => {
          leave();
          resolve(place(legs, clock.nowMs() - sinceMs));
        },
      };
      const timer = clock.setTimer(o.queueTimeoutMs, () => {
        leave();
        reject(
          new ServiceError(
            "instance_busy",
            `All instances are busy: the request waited ${o.queueTimeoutMs} ms in the queue and none became free. Try again later.`,
            { retryAfterS: 1 },
          ),
        );
        poke();
      });
      gone.addEventListener("abort", onGone, { once: true });
      enqueue(waiter);
    });
  }

  return {
    async acquire(gone, legs = 1) {
      if (gone.aborted) throw cancelled();
      if (first === undefined && fits(legs)) return place(legs, 0);
      if (waiting >= o.queueLimit) {
        throw new ServiceError(
          "queue_full",
          `Too many requests: all instances are busy and ${waiting} ${waiting === 1 ? "request waits" : "requests wait"} already. Try again in a second.`,
          { retryAfterS: 1 },
        );
      }
      return wait(gone, legs);
    },
    poke,
    get running() {
      return running;
    },
    get waiting() {
      return waiting;
    },
  };
}

function cancelled(): ServiceError {
  return new ServiceError("cancelled", "The client left while its request waited in the queue.");
}
