// Legs of admitted requests that returned to the queue because every suitable instance was busy, with other routers'
// legs or by stale figures. They wait at the head of the queue, because they have already had their turn: by priority,
// and then in the order of their return. A leg that still finds no slot does not keep others from being admitted.

/**
 * Legs of a model that may fail to find a slot after one change. More than one, because legs differ in the instances they may use.
 */
const MISS_LIMIT = 8;

/** One leg that waits for a slot. */
export interface ReturnedLeg {
  readonly model: string;
  readonly priority: number;
  /** Looks for a slot again. Returns false if the leg has to keep waiting; otherwise it has been removed. */
  retry(): boolean;
}

export class ReturnedLegs {
  readonly #legs: ReturnedLeg[] = [];

  get size(): number {
    return this.#legs.length;
  }

  add(leg: ReturnedLeg): void {
    const behind = this.#legs.findIndex(({ priority }) => priority > leg.priority);
    this.#legs.splice(behind < 0 ? this.#legs.length : behind, 0, leg);
  }

  remove(leg: ReturnedLeg): void {
    const index = this.#legs.indexOf(leg);
    if (index >= 0) this.#legs.splice(index, 1);
  }

  /** Tries the legs again after slots may have become free. Stops with a model after a few failures. */
  poke(): void {
    const misses = new Map<string, number>();
    // A copy, because a leg that finds a slot and is refused there returns to the list.
    for (const leg of [...this.#legs]) {
      const missed = misses.get(leg.model) ?? 0;
      if (missed === MISS_LIMIT || !this.#legs.includes(leg) || leg.retry()) continue;
      misses.set(leg.model, missed + 1);
    }
  }
}
