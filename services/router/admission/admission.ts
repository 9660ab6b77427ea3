// Decides when a request may start: at once while decode has free slots for its model, otherwise after a wait in one
// bounded queue, which is fair between tenants (queue.ts). A request that is refused or leaves costs the instances
// nothing.
import type { Clock } from "../../common/clock.ts";
import type { Live } from "../../common/config.ts";
import type { Deadline, Deadlines } from "../../common/deadlines.ts";
import { asServiceError, ServiceError, type FailureCode } from "../../common/errors.ts";
import type { RouterConfig } from "../config.ts";
import { LagLimit } from "./lag-limit.ts";
import { calm, type Overload } from "./overload.ts";
import { FairQueue, type Waiter as Queued } from "./queue.ts";
import { ReturnedLegs } from "./returned.ts";
import { QueuePace, StandingQueue } from "./standing-queue.ts";

/** Why a request was not admitted. The failure's code doesn't tell all reasons apart: three of them are 429. */
export const REFUSALS = [
  "queue_full", // The queue is full.
  "displaced", // By a request of a tenant with fewer waiting ones, or of its own tenant with a better priority.
  "queue_stands", // It waited longer than queue.target_ms in a queue that did not get shorter.
  "deadline_foreseen", // The estimated wait was longer than its deadline allowed.
  "deadline_passed", // Its deadline passed while it waited.
  "queue_timeout", // queue.timeout_ms was over.
  "no_instance", // No instance could serve its model.
  "client_left", // Its client left while it waited.
  "body_memory", // The bodies of all requests fill body.total_bytes.
  "quarantined", // The same body made engines fail a moment ago.
  "stale_registry", // It was strict, and the registry was away.
] as const;

export type Refusal = (typeof REFUSALS)[number];

/** What a leg needs a slot for. */
export interface SlotSearch<T> {
  /** Throws `instance_busy` if waiting may help. */
  pick(): T;
  found(picked: T): void;
  failed(error: ServiceError): void;
}

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
   * @returns A function that ends the wait; undefined if there was none.
   */
  findSlot<T>(search: SlotSearch<T>, othersIdleSinceMs: () => number | undefined): (() => void) | undefined;
  /** Releases the slots. Further calls do nothing. */
  release(): void;
}

/** A request as admission sees it. Default: one leg without model, tenant, priority and deadline. */
export interface Applicant extends Partial<Queued> {
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
  /** When that is expected to end, and a text that says so. Undefined if nothing is known. */
  lackEnd?(model: string): { readonly text: string; readonly inMs: number } | undefined;
  /** Limits of the queue: its length and the longest wait. */
  readonly queue: Live<Pick<RouterConfig["queue"]["current"], "limit" | "timeoutMs" | "targetMs">>;
  /** Left out: never overloaded. Gets to know whether a queue stands. */
  readonly overload?: Overload;
  /** Called when a request is refused. */
  onRefused?(because: Refusal): void;
  readonly clock: Clock;
  readonly deadlines: Deadlines;
}

interface Waiter extends Queued {
  readonly sinceMs: number;
  admit(): void;
  refuse(error: ServiceError): void;
}

/** What is known of the slots of one model. */
class ModelSlots {
  running = 0;
  /** Measured only while requests wait: otherwise slots become free at the pace of arriving requests. */
  pace: QueuePace | undefined;
  readonly standing = new StandingQueue();
}

/** Range of the Retry-After that a refused client gets. */
const RETRY_AFTER_S = { min: 1, max: 60 };
const LOAD_LIMIT_S = 600;
/** Interval at which a request that waits for an engine asks whether one is still expected. */
const LOOK_AGAIN_MS = 1_000;

export function createAdmission(o: AdmissionOptions): Admission {
  const { clock, deadlines, overload = calm() } = o;
  const queue = new FairQueue<Waiter>();
  const returned = new ReturnedLegs();
  const lag = new LagLimit();
  const models = new Map<string, ModelSlots>();
  let runningLegs = 0;

  function slotsOf(model: string): ModelSlots {
    let slots = models.get(model);
    if (slots === undefined) models.set(model, (slots = new ModelSlots()));
    return slots;
  }

  function fits(model: string, legs: number): boolean {
    const capacity = o.capacity(model);
    const used = models.get(model)?.running ?? 0;
    if (used + legs > capacity && (used > 0 || capacity === 0)) return false;
    return runningLegs === 0 || runningLegs + legs <= lag.at(overload.loopDelayMs, runningLegs, clock.nowMs());
  }

  function count(model: string, legs: number): void {
    slotsOf(model).running += legs;
    runningLegs += legs;
  }

  function admit({ model, legs, priority }: Queued, waitedMs: number): Admitted {
    count(model, legs);
    const admittedMs = clock.nowMs();
    let held = true;
    return {
      waitedMs,
      findSlot({ pick, found, failed }, othersIdleSinceMs) {
        let due: Deadline | undefined = undefined;
        let busy: ServiceError | undefined;
        const retry = (): boolean => {
          let then: () => void;
          try {
            const picked = pick();
            then = () => found(picked);
          } catch (thrown) {
            const error = asServiceError(thrown);
            // Not for a wait that is certain to be too long.
            if (error.code === "instance_busy" && !(seconds(leftMs()) < (error.retryAfterS ?? 0))) {
              busy = error;
              return false;
            }
            then = () => failed(error);
          }
          end();
          then();
          return true;
        };
        const sinceMs = clock.nowMs();
        const leftMs = (): number => Math.max(0, o.queue.current.timeoutMs - waitedMs);
        const leg = { model, priority, retry };
        const end = (): void => {
          due?.cancel();
          returned.remove(leg);
        };
        if (retry()) return undefined;
        returned.add(leg);
        due = deadlines.watch(sinceMs + leftMs(), (nowMs) => {
          const dueMs = Math.max(sinceMs, othersIdleSinceMs() ?? nowMs) + leftMs();
          if (nowMs < dueMs) return dueMs;
          end();
          failed(busy!);
          return undefined;
        });
        return end;
      },
      release() {
        if (!held) return;
        held = false;
        count(model, -legs);
        const slots = slotsOf(model);
        slots.standing.ran(clock.nowMs() - admittedMs);
        if (queue.first(model) === undefined) slots.pace = undefined;
        else (slots.pace ??= new QueuePace()).released(legs, clock.nowMs());
        pokeOne(model);
        if (slots.running === 0 && queue.first(model) === undefined) models.delete(model);
      },
    };
  }

  // Only the first one is tried, so that small requests don't overtake a large one for ever.
  function pokeOne(model: string): void {
    for (let first = next(model); first !== undefined && fits(model, first.legs); first = next(model)) first.admit();
  }

  /** The request that gets the next slot. Refuses those that have waited too long in a queue that stands. */
  function next(model: string): Waiter | undefined {
    // Nothing can serve it: requests wait for an engine that is being started, and are no burst.
    if (o.capacity(model) === 0) return queue.first(model);
    const { standing, pace } = slotsOf(model);
    const stood = standing.stands;
    const nowMs = clock.nowMs();
    const targetMs = standing.targetMs(o.queue.current.targetMs);
    const expectedMs = pace?.waitMs(queue.legsOf(model), nowMs);
    const oldest = queue.oldest(model);
    if (oldest === undefined) standing.emptied(nowMs);
    else if (fits(model, 1)) standing.look(nowMs - oldest.sinceMs, expectedMs, targetMs, nowMs);
    if (standing.stands) {
      for (let late = oldest; late !== undefined && nowMs - late.sinceMs > targetMs; late = queue.oldest(model))
        late.refuse(standsTooLong(nowMs - late.sinceMs, expectedMs));
      queue.preferNewest(model);
    }
    if (standing.stands !== stood)
      overload.queueStands = queue.models().some((other) => slotsOf(other).standing.stands);
    return queue.first(model);
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
        sinceMs,
        admit() {
          leave(true);
          resolve(admit(wanted, clock.nowMs() - sinceMs));
        },
        refuse(error) {
          leave(false);
          reject(error);
        },
      };
      const end = (error: ServiceError): void => {
        waiter.refuse(error);
        pokeOne(wanted.model); // The next one may fit.
      };
      const onGone = (): void => end(clientLeft());
      const { timeoutMs: queueTimeoutMs } = o.queue.current;
      const leftMs = deadlineMs - sinceMs;
      const lastMs = sinceMs + Math.max(0, Math.min(queueTimeoutMs, leftMs));
      // One that waits for an engine is told if that comes to nothing.
      const isLacking = o.lack?.(wanted.model) !== undefined;
      const nextMs = (nowMs: number): number => (isLacking ? Math.min(lastMs, nowMs + LOOK_AGAIN_MS) : lastMs);
      const due = deadlines.watch(nextMs(sinceMs), (nowMs) => {
        const isHopeless = o.lack?.(wanted.model) !== undefined && o.lackEnd?.(wanted.model) === undefined;
        if (nowMs < lastMs && !isHopeless) return nextMs(nowMs);
        if (nowMs < lastMs) end(waitedInVain(wanted.model, Math.round(nowMs - sinceMs)));
        else if (leftMs < queueTimeoutMs) end(tooLate(nowMs - sinceMs));
        else end(waitedInVain(wanted.model, queueTimeoutMs));
        return undefined;
      });
      gone.addEventListener("abort", onGone, { once: true });
      queue.push(waiter);
    });
  }

  /** Counts a request that is not admitted. Returns the error for its client. */
  function refused(because: Refusal, code: FailureCode, message: string, retryAfterS?: number): ServiceError {
    o.onRefused?.(because);
    return new ServiceError(code, message, retryAfterS === undefined ? {} : { retryAfterS });
  }

  function clientLeft(): ServiceError {
    return refused("client_left", "cancelled", "The client left while its request waited in the queue.");
  }

  function tooLate(waitedMs: number): ServiceError {
    const message = `The request ran past its deadline (queue ${Math.round(waitedMs)} ms).`;
    return refused("deadline_passed", "deadline_exceeded", message);
  }

  function full(because: "queue_full" | "displaced", waitMs = 0): ServiceError {
    const waiting = `${queue.size} ${queue.size === 1 ? "request waits" : "requests wait"}`;
    const message = `Too many requests: all instances are busy and ${waiting} already. Try again in a second.`;
    return refused(because, "queue_full", message, seconds(waitMs));
  }

  function standsTooLong(waitedMs: number, expectedMs = 0): ServiceError {
    const message = `Too many requests: more arrive than the instances can serve. The request waited ${Math.round(waitedMs)} ms. Try again later.`;
    return refused("queue_stands", "queue_full", message, seconds(expectedMs));
  }

  function waitedInVain(model: string, timeoutMs: number): ServiceError {
    const lack = o.lack?.(model);
    if (lack !== undefined) {
      const { text = lack, inMs = 0 } = o.lackEnd?.(model) ?? {};
      const message = `${text} The request waited ${timeoutMs} ms. Try again later.`;
      return refused("no_instance", "no_instance", message, seconds(inMs, LOAD_LIMIT_S));
    }
    const message = `All instances are busy: the request waited ${timeoutMs} ms in the queue and no slot became free. Try again later.`;
    return refused("queue_timeout", "instance_busy", message, 1);
  }

  /** @throws ServiceError if a wait would be in vain */
  function checkWait(wanted: Queued, deadlineMs: number): void {
    const nowMs = clock.nowMs();
    const lackEnd = o.lackEnd?.(wanted.model);
    if (lackEnd !== undefined) {
      const { limit, timeoutMs } = o.queue.current;
      const { inMs, text } = lackEnd;
      if (queue.size < limit && inMs <= Math.min(timeoutMs, deadlineMs - nowMs)) return;
      throw refused("no_instance", "no_instance", text, seconds(inMs, LOAD_LIMIT_S));
    }
    const waitMs = models.get(wanted.model)?.pace?.waitMs(queue.legsBefore(wanted) + wanted.legs, nowMs);
    const leftMs = deadlineMs - nowMs;
    if (waitMs !== undefined && waitMs > leftMs) {
      const message = `The request can't start before its deadline: it would wait about ${Math.round(waitMs)} ms, and has ${Math.round(leftMs)} ms left.`;
      throw refused("deadline_foreseen", "queue_full", message, seconds(waitMs - leftMs));
    }
    const { limit } = o.queue.current;
    if (queue.size < limit) return;
    const displaced = limit === 0 ? undefined : queue.displacedBy(wanted);
    if (displaced === undefined) throw full("queue_full", waitMs);
    displaced.refuse(full("displaced"));
  }

  return {
    async acquire(gone, { legs = 1, model = "", tenant = "", priority = 0, deadlineMs = Infinity } = {}) {
      if (gone.aborted) throw clientLeft();
      const wanted = { legs, model, tenant, priority };
      if (queue.first(model) !== undefined) pokeOne(model);
      if (queue.first(model) === undefined && fits(model, legs)) return admit(wanted, 0);
      checkWait(wanted, deadlineMs);
      return wait(gone, wanted, deadlineMs);
    },
    poke,
    get running() {
      return runningLegs;
    },
    get waiting() {
      return queue.size + returned.size;
    },
  };
}

/** @param limit A model may load for many minutes. */
function seconds(ms: number, limit = RETRY_AFTER_S.max): number {
  return Math.min(limit, Math.max(RETRY_AFTER_S.min, Math.ceil(ms / 1000)));
}
