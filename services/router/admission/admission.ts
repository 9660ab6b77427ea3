// Decides when a request may start: at once while decode has free slots for its model, otherwise after a wait in one
// bounded queue, which is fair between tenants (queue.ts). A request that is refused or leaves costs the instances
// nothing.
import type { Clock } from "../../common/clock.ts";
import type { Live } from "../../common/config.ts";
import type { Deadline, Deadlines } from "../../common/deadlines.ts";
import { ServiceError } from "../../common/errors.ts";
import type { RouterConfig } from "../config.ts";
import { Pace } from "./pace.ts";
import { FairQueue, type Waiter as Queued } from "./queue.ts";
import type { Refusal } from "./refusals.ts";
import { type ReturnedLeg, ReturnedLegs } from "./returned.ts";

/** The slots that an admitted request holds for its legs until it ends. */
export interface Admitted {
  /** Time spent in the queue before it was admitted. */
  readonly waitedMs: number;
  /**
   * Finds a slot for a leg that found every instance busy, or was refused by one. The leg returns to the head of the
   * queue, and waits there for the rest of its request's queue time. Calls `found` or `failed` exactly once, at once or
   * later, unless the wait is ended first.
   *
   * @param othersIdleSinceMs Since when no other leg of the request runs that would free a slot; undefined while one
   *   runs, which pauses the queue time.
   * @returns A function that ends the wait.
   */
  findSlot<T>(leg: ReturnedLeg<T>, othersIdleSinceMs: () => number | undefined): () => void;
  /** Releases the slots. Further calls do nothing. */
  release(): void;
}

/** A request as admission sees it. */
export interface Applicant {
  /** Legs that it will run, one for each choice of each prompt. Default 1. */
  readonly legs?: number;
  readonly model?: string;
  /** The tenant whose share of the queue it takes. Default: empty, the tenant of all requests without one. */
  readonly tenant?: string;
  /** Lower is sooner, as in vLLM. Default 0. */
  readonly priority?: number;
  /** When it must have ended, by the clock. */
  readonly deadlineMs?: number | undefined;
}

export interface Admission {
  /**
   * Resolves when the request may start. A request with more legs than there are slots in total starts when no other
   * request of its model runs, and has to pace itself.
   *
   * @param gone Aborted when the client leaves: it leaves the queue at once.
   * @throws ServiceError `queue_full`, also if its deadline can't be met; `instance_busy` or `no_instance` after the
   *   queue's timeout; `deadline_exceeded`; `cancelled` when `gone`
   */
  acquire(gone: AbortSignal, applicant?: Applicant): Promise<Admitted>;
  /** Admits waiting requests, after the capacity may have changed. */
  poke(): void;
  /** Legs of the requests that run. */
  readonly running: number;
  /** Requests in the queue, and legs that returned to it. */
  readonly waiting: number;
}

export interface AdmissionOptions {
  /** Legs of a model that may run at once at this moment. */
  capacity(model: string): number;
  /** Why no instance can serve a model, in words. Undefined if one can. */
  lack?(model: string): string | undefined;
  /** Limits of the queue: its length and the longest wait. */
  readonly queue: Live<Pick<RouterConfig["queue"]["current"], "limit" | "timeoutMs">>;
  /** Called when a request is refused. */
  onRefused?(because: Refusal): void;
  readonly clock: Clock;
  readonly deadlines: Deadlines;
}

interface Waiter extends Queued {
  admit(): void;
  refuse(refused: Refused): void;
}

interface Refused {
  readonly because: Refusal;
  readonly error: ServiceError;
}

/** Range of the Retry-After that a refused client gets. */
const RETRY_AFTER_S = { min: 1, max: 60 };

export function createAdmission(o: AdmissionOptions): Admission {
  const { clock, deadlines } = o;
  const queue = new FairQueue<Waiter>();
  const returned = new ReturnedLegs();
  const runningOf = new Map<string, number>();
  const paces = new Map<string, Pace>();
  let running = 0;

  function fits(model: string, legs: number): boolean {
    const capacity = o.capacity(model);
    const used = runningOf.get(model) ?? 0;
    return used + legs <= capacity || (used === 0 && capacity > 0);
  }

  function count(model: string, legs: number): void {
    running += legs;
    const used = (runningOf.get(model) ?? 0) + legs;
    if (used > 0) runningOf.set(model, used);
    else runningOf.delete(model);
  }

  function admit({ model, legs, priority }: Queued, waitedMs: number): Admitted {
    count(model, legs);
    let held = true;
    return {
      waitedMs,
      findSlot: (leg, othersIdleSinceMs) => findSlot(model, priority, leg, othersIdleSinceMs, waitedMs),
      release() {
        if (!held) return;
        held = false;
        count(model, -legs);
        // While no request waits, the pace of freed slots only reflects the pace of arriving requests.
        if (queue.first(model) !== undefined) paceOf(model).released(legs, clock.nowMs());
        else paces.delete(model);
        pokeOne(model);
      },
    };
  }

  function paceOf(model: string): Pace {
    let pace = paces.get(model);
    if (pace === undefined) paces.set(model, (pace = new Pace()));
    return pace;
  }

  // Only the first one is tried, so that small requests don't overtake a large one for ever.
  function pokeOne(model: string): void {
    for (let first = queue.first(model); first !== undefined && fits(model, first.legs); first = queue.first(model))
      first.admit();
  }

  function findSlot<T>(
    model: string,
    priority: number,
    leg: ReturnedLeg<T>,
    othersIdleSinceMs: () => number | undefined,
    waitedMs: number,
  ): () => void {
    let due: Deadline | undefined = undefined;
    const waiting = returned.add(model, priority, {
      pick: leg.pick,
      found(picked: T) {
        due?.cancel();
        leg.found(picked);
      },
      failed(error) {
        due?.cancel();
        leg.failed(error);
      },
    });
    if (waiting === undefined) return () => {};
    const sinceMs = clock.nowMs();
    const leftMs = (): number => Math.max(0, o.queue.current.timeoutMs - waitedMs);
    due = deadlines.watch(sinceMs + leftMs(), (nowMs) => {
      const dueMs = Math.max(sinceMs, othersIdleSinceMs() ?? nowMs) + leftMs();
      if (nowMs < dueMs) return dueMs;
      waiting.end();
      leg.failed(waiting.error);
      return undefined;
    });
    return () => {
      due?.cancel();
      waiting.end();
    };
  }

  function poke(): void {
    returned.poke();
    for (const model of queue.models()) pokeOne(model);
  }

  function wait(gone: AbortSignal, wanted: Queued, deadlineMs: number): Promise<Admitted> {
    return new Promise((resolve, reject) => {
      const sinceMs = clock.nowMs();
      const leave = (served: boolean): void => {
        queue.remove(waiter, served);
        due.cancel();
        gone.removeEventListener("abort", onGone);
      };
      const waiter: Waiter = {
        ...wanted,
        admit() {
          leave(true);
          resolve(admit(wanted, clock.nowMs() - sinceMs));
        },
        refuse(refused) {
          leave(false);
          reject(counted(refused));
          pokeOne(wanted.model); // The next one may fit.
        },
      };
      const onGone = (): void => waiter.refuse({ because: "client_left", error: cancelled() });
      const { timeoutMs: queueTimeoutMs } = o.queue.current;
      const leftMs = deadlineMs - sinceMs;
      const due = deadlines.at(sinceMs + Math.max(0, Math.min(queueTimeoutMs, leftMs)), () => {
        if (leftMs >= queueTimeoutMs) waiter.refuse(waitedInVain(wanted.model, queueTimeoutMs));
        else waiter.refuse({ because: "deadline_passed", error: tooLate(clock.nowMs() - sinceMs) });
      });
      gone.addEventListener("abort", onGone, { once: true });
      queue.push(waiter);
    });
  }

  function counted({ because, error }: Refused): ServiceError {
    o.onRefused?.(because);
    return error;
  }

  function waitedInVain(model: string, queueTimeoutMs: number): Refused {
    const lack = o.lack?.(model);
    if (lack !== undefined) {
      const message = `${lack} The request waited ${queueTimeoutMs} ms. Try again later.`;
      return { because: "no_instance", error: new ServiceError("no_instance", message, { retryAfterS: 1 }) };
    }
    const message = `All instances are busy: the request waited ${queueTimeoutMs} ms in the queue and no slot became free. Try again later.`;
    return { because: "queue_timeout", error: new ServiceError("instance_busy", message, { retryAfterS: 1 }) };
  }

  /** @throws ServiceError if a wait would be in vain */
  function checkWait(wanted: Queued, deadlineMs: number): void {
    const nowMs = clock.nowMs();
    const waitMs = paces.get(wanted.model)?.waitMs(queue.legsBefore(wanted) + wanted.legs, nowMs);
    const leftMs = deadlineMs - nowMs;
    if (waitMs !== undefined && waitMs > leftMs) {
      const message = `The request can't start before its deadline: it would wait about ${Math.round(waitMs)} ms, and has ${Math.round(leftMs)} ms left.`;
      throw counted({
        because: "deadline_foreseen",
        error: new ServiceError("queue_full", message, { retryAfterS: seconds(waitMs - leftMs) }),
      });
    }
    const { limit } = o.queue.current;
    if (queue.size < limit) return;
    const displaced = limit === 0 ? undefined : queue.displacedBy(wanted);
    if (displaced === undefined) throw counted({ because: "queue_full", error: full(queue.size, waitMs) });
    displaced.refuse({ because: "displaced", error: full(queue.size, undefined) });
  }

  return {
    async acquire(gone, { legs = 1, model = "", tenant = "", priority = 0, deadlineMs = Infinity } = {}) {
      if (gone.aborted) throw counted({ because: "client_left", error: cancelled() });
      const wanted = { legs, model, tenant, priority };
      if (queue.first(model) === undefined && fits(model, legs)) return admit(wanted, 0);
      checkWait(wanted, deadlineMs);
      return wait(gone, wanted, deadlineMs);
    },
    poke,
    get running() {
      return running;
    },
    get waiting() {
      return queue.size + returned.size;
    },
  };
}

function full(waiting: number, waitMs: number | undefined): ServiceError {
  return new ServiceError(
    "queue_full",
    `Too many requests: all instances are busy and ${waiting} ${waiting === 1 ? "request waits" : "requests wait"} already. Try again in a second.`,
    { retryAfterS: seconds(waitMs ?? 0) },
  );
}

function tooLate(waitedMs: number): ServiceError {
  return new ServiceError("deadline_exceeded", `The request ran past its deadline (queue ${Math.round(waitedMs)} ms).`);
}

function seconds(ms: number): number {
  return Math.min(RETRY_AFTER_S.max, Math.max(RETRY_AFTER_S.min, Math.ceil(ms / 1000)));
}

function cancelled(): ServiceError {
  return new ServiceError("cancelled", "The client left while its request waited in the queue.");
}
