// Legs of admitted requests that came back: every instance that could take them was busy, with other routers' legs or by
// figures that were old. They wait at the head of the queue, for their turn was given to them already: by priority, and
// then in the order in which they came back. One that still finds no slot keeps no other from being admitted.
import { asServiceError, type ServiceError } from "../../common/errors.ts";

/** Legs that are tried in vain after one change. More than one: what each may use differs. */
const MISS_LIMIT = 8;

/** One leg that waits for a slot. */
export interface ReturnedLeg<T = unknown> {
  /** Throws `instance_busy` where waiting may help. */
  pick(): T;
  found(picked: T): void;
  failed(error: ServiceError): void;
}

interface Entry {
  readonly priority: number;
  /** Tries again. False: still busy. */
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
   * Calls `found` or `failed`, at once or later and exactly once, unless the wait is ended first.
   *
   * @returns The refusal that is waited out and what ends the wait; undefined where there was no wait.
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

  /** Slots may have come free: tries the legs again, few of them in vain. */
  poke(): void {
    for (const entries of this.#byModel.values()) {
      let misses = 0;
      // A copy, because one that finds a slot and is refused there comes back.
      for (const entry of [...entries]) {
        if (!entries.includes(entry) || entry.retry()) continue;
        misses += 1;
        if (misses === MISS_LIMIT) break;
      }
    }
  }
}

/**
 * Picks, and tells the leg what came of it.
 *
 * @param done Called before the leg is told.
 * @returns The error where it has to wait on.
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
