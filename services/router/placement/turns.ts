// Gives instances their turns. Remembers the last instance by its ordinal and not by its position, so that no instance
// loses its turn when another one joins, leaves or is left out of one choice.
import type { Candidate } from "./policy.ts";

/** Takes, among the candidates offered since `clear`, the first one after the last one taken, and wraps around. */
export class Turns {
  #last = 0;
  #next: Candidate | undefined;
  #first: Candidate | undefined;

  clear(): void {
    this.#next = this.#first = undefined;
  }

  offer(candidate: Candidate): void {
    const { ordinal } = candidate;
    if (this.#first === undefined || ordinal < this.#first.ordinal) this.#first = candidate;
    if (ordinal > this.#last && (this.#next === undefined || ordinal < this.#next.ordinal)) this.#next = candidate;
  }

  /** Requires that at least one candidate was offered, and that all are of type `T`. */
  take<T extends Candidate>(): T {
    const taken = (this.#next ?? this.#first)!;
    this.#last = taken.ordinal;
    this.clear();
    return taken as T;
  }
}
