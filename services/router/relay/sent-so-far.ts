// What the client has of one streamed choice, as a digest: enough to know whether another attempt writes the same again.
// A stream that is written again is compared to the last byte before anything of it is passed on, so what the client gets
// is always one whole answer of one engine, or an error. Memory is the same for any length.
import { createHash, type Hash } from "node:crypto";

const NOTHING = Buffer.alloc(0);

export class SentSoFar {
  readonly #sent = createHash("sha256");
  #sentBytes = 0;
  #again: Hash | undefined;
  #bytesLeft = 0;

  /** Whether an attempt still repeats what the client has. */
  get repeating(): boolean {
    return this.#again !== undefined;
  }

  /** Another attempt begins. */
  repeat(): void {
    this.#again = createHash("sha256");
    this.#bytesLeft = this.#sentBytes;
  }

  /** The part of `events` that the client doesn't have; undefined where this attempt writes another answer. */
  pass(events: Buffer): Buffer | undefined {
    const again = this.#again;
    let fresh = events;
    if (again !== undefined) {
      const known = events.subarray(0, this.#bytesLeft);
      again.update(known);
      this.#bytesLeft -= known.length;
      if (this.#bytesLeft > 0) return NOTHING;
      if (!again.digest().equals(this.#sent.copy().digest())) return undefined;
      this.#again = undefined;
      fresh = events.subarray(known.length);
    }
    this.#sent.update(fresh);
    this.#sentBytes += fresh.length;
    return fresh;
  }
}
