// Keeps a digest of the bytes that the client has of one streamed choice, to check whether another attempt repeats
// them. All of those bytes are compared before any new byte is passed on, so the client always gets one whole answer of
// one engine, or an error. Memory is the same for any length.
import { createHash, type Hash } from "node:crypto";

const NOTHING = Buffer.alloc(0);

export class SentSoFar {
  readonly #sent = createHash("sha256");
  #sentBytes = 0;
  #again: Hash | undefined;
  #bytesLeft = 0;

  /** Whether an attempt is still repeating what the client has. */
  get repeating(): boolean {
    return this.#again !== undefined;
  }

  /** Starts the comparison for another attempt. */
  repeat(): void {
    this.#again = createHash("sha256");
    this.#bytesLeft = this.#sentBytes;
  }

  /** Returns the part of `events` that the client doesn't have; undefined if this attempt writes another answer. */
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
