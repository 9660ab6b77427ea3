// Legs of admitted requests that returned to the queue because every suitable instance was busy, with other routers'
// legs or by stale figures. They wait at the head of the queue, because they have already had their turn: by priority,
// and then in the order of their return. A leg that still finds no slot does not keep others from being admitted.

/**
 * Legs that may fail to find a slot after one change. More than one, because legs differ in the instances they may use.
 */
const MISS_LIMIT = 8;

/** One leg that waits for a slot. */
export interface ReturnedLeg {
  readonly priority: number;
  /** Looks for a slot again. Returns false if the leg has to keep waiting; otherwise it has been removed. */
  retry(): boolean;
}

export class ReturnedLegs {
  readonly #byModel = new Map<string, ReturnedLeg[]>();

  get size(): number {
    let size = 0;
    for (const legs of this.#byModel.values()) size += legs.length;
    return size;
  }

  /** Returns a function that removes the leg. */
  add(model: string, leg: ReturnedLeg): () => void {
    const legs = this.#byModel.get(model) ?? [];
    this.#byModel.set(model, legs);
    const behind = legs.findIndex(({ priority }) => priority > leg.priority);
    legs.splice(behind < 0 ? legs.length : behind, 0, leg);
    return () => {
      const index = legs.indexOf(leg);
      if (index >= 0) legs.splice(index, 1);
      if (legs.length === 0 && this.#byModel.get(model) === legs) this.#byModel.delete(model);
    };
  }

  /** Tries the legs again after slots may have become free. Stops after a few failures. */
  poke(): void {
    for (const legs of this.#byModel.values()) {
      let misses = 0;
      // A copy, because a leg that finds a slot and is refused there returns to the list.
      for (const leg of [...legs]) {
        if (!legs.includes(leg) || leg.retry()) continue;
        misses += 1;
        if (misses === MISS_LIMIT) break;
      }
    }
  }
}
