// Legs of admitted requests that returned to the queue because every suitable instance was busy, with other routers'
// legs or by stale figures. They wait at the head of the queue, because they have already had their turn: by priority,
// and then in the order of their return. A leg that still finds no slot does not keep others from being admitted.
import { asServiceError, type ServiceError } from "../../common/errors.ts";

/**
 * Legs that may fail to find a slot after one change. More than one, because legs differ in the instances they may use.
 */
const MISS_LIMIT = 8;

/** One leg that waits for a slot. */
export interface ReturnedLeg<T = unknown> {
  /** Throws `instance_busy` if waiting may help. */
  pick(): T;
  found(picked: T): void;
  failed(error: ServiceError): void;
}

interface Entry {
  readonly priority: number;
  /** Tries again. Returns false if all instances are still busy. */
  retry(): boolean;
}

export class ReturnedLegs {
  readonly #byModel = new Map<string, Entry[]>();

  get size(): number {
    let size = 0;
    for (const entries of this.#byModel.values()) size += entries.length;
    return size;
  }

  /**
   * Calls `found` or `failed` exactly once, at once or later, unless the wait is ended first.
   *
   * @returns The refusal that caused the wait and a function that ends the wait; undefined if there was no wait.
   */
  add<T>(model: string, priority: number, leg: ReturnedLeg<T>): { error: ServiceError; end(): void } | undefined {
    const first = attempt(leg);
    if (first === undefined) return undefined;
    const entries = this.#byModel.get(model) ?? [];
    this.#byModel.set(model, entries);
    const end = (): void => {
      const index = entries.indexOf(entry);
      if (index >= 0) entries.splice(index, 1);
      if (entries.length === 0 && this.#byModel.get(model) === entries) this.#byModel.delete(model);
    };
    const entry: Entry = {
      priority,
      retry: () => attempt(leg, end) === undefined,
    };
    const behind = entries.findIndex((other) => other.priority > priority);
    entries.splice(behind < 0 ? entries.length : behind, 0, entry);
    return { error: first, end };
  }

  /** Tries the legs again after slots may have become free. Stops after a few failures. */
  poke(): void {
    for (const entries of this.#byModel.values()) {
      let misses = 0;
      // A copy, because a leg that finds a slot and is refused there returns to the list.
      for (const entry of [...entries]) {
        if (!entries.includes(entry) || entry.retry()) continue;
        misses += 1;
        if (misses === MISS_LIMIT) break;
      }
    }
  }
}

/**
 * Picks an instance, and calls the leg's `found` or `failed`.
 *
 * @param done Called before `found` or `failed`.
 * @returns The error if the leg has to keep waiting.
 */
function attempt<T>(leg: ReturnedLeg<T>, done: () => void = () => {}): ServiceError | undefined {
  let picked: T;
  try {
    picked = leg.pick();
  } catch (thrown) {
    const error = asServiceError(thrown);
    if (error.code === "instance_busy") return error;
    done();
    leg.failed(error);
    return undefined;
  }
  done();
  leg.found(picked);
  return undefined;
}
