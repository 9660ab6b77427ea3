// The messages of one call for one reader, at either end of the call. Unread messages wait here, and hold the sender
// back once there are many.
import type { ServiceError } from "../common/errors.ts";
import type { RawCall } from "./service.ts";

/** Messages that wait before the sender is held back. */
const LIMIT = 16;

/** Ends with the sender's half-close; throws, after the messages that came before it, when the call breaks. */
export class Inbox<T> implements AsyncIterableIterator<T> {
  readonly #read: (bytes: Buffer) => T;
  readonly #source: Pick<RawCall, "pause" | "resume">;
  readonly #queue: Buffer[] = [];
  #paused = false;
  #ended = false;
  #error: ServiceError | undefined;
  #wake: (() => void) | undefined;

  /** @param read Throws ServiceError for bytes that are not a message. */
  constructor(read: (bytes: Buffer) => T, source: Pick<RawCall, "pause" | "resume">) {
    this.#read = read;
    this.#source = source;
  }

  push(message: Buffer): void {
    this.#queue.push(message);
    if (this.#queue.length >= LIMIT && !this.#paused) {
      this.#paused = true;
      this.#source.pause();
    }
    this.#wake?.();
  }

  end(): void {
    this.#ended = true;
    this.#wake?.();
  }

  fail(error: ServiceError): void {
    this.#error = error;
    // A side that cancels wants no more.
    if (error.code === "cancelled") this.#queue.length = 0;
    this.#wake?.();
  }

  async next(): Promise<IteratorResult<T>> {
    while (this.#queue.length === 0) {
      if (this.#error !== undefined) throw this.#error;
      if (this.#ended) return { done: true, value: undefined };
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const message = this.#queue.shift()!;
    // Only once the inbox is empty: pausing and resuming for every message costs far more than the messages.
    if (this.#paused && this.#queue.length === 0) {
      this.#paused = false;
      this.#source.resume();
    }
    return { done: false, value: this.#read(message) };
  }

  async return(): Promise<IteratorResult<T>> {
    this.#queue.length = 0;
    this.#ended = true;
    this.#source.resume();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
