// Whose turn it is. Remembers the last instance by its ordinal and not by its position, so that an instance that joins,
// leaves or is left out of one choice takes no other's turn.
import type { Candidate } from "./policy.ts";

/** Among the candidates offered since `clear`, the first one after the last one taken; from the start again at the end. */
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

  /** At least one was offered, and all of them are of type `T`. */
  take<T extends Candidate>(): T {
    const taken = (this.#next ?? this.#first)!;
    this.#last = taken.ordinal;
    this.clear();
    return taken as T;
  }
}
