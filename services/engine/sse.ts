// Cuts an engine's event stream into whole events, on bytes: no decoding, no line objects, one search per event.
// Events end at a blank line, "\n\n" or "\r\n\r\n", and may be cut at any byte by the network.

const LF = 10;
const CR = 13;

/** One event: `buffer` from `start` to `end`, without the blank line. Valid until the callback returns. */
export type OnEvent = (buffer: Buffer, start: number, end: number) => void;

export class EventSplitter {
  readonly #onEvent: OnEvent;
  readonly #limitBytes: number;
  #rest: Buffer | undefined;
  /** Bytes of the rest known to hold no end of an event. */
  #searched = 0;

  /** @param limitBytes The largest event; its bytes are held in memory until it ends. */
  constructor(onEvent: OnEvent, limitBytes: number) {
    this.#onEvent = onEvent;
    this.#limitBytes = limitBytes;
  }

  /** Bytes of an event that has not ended. Not 0 at the end of a stream: it was cut off. */
  get pendingBytes(): number {
    return this.#rest?.length ?? 0;
  }

  /** @throws RangeError when an event grows past the limit. */
  push(chunk: Buffer): void {
    const buffer = this.#rest === undefined ? chunk : Buffer.concat([this.#rest, chunk]);
    const length = buffer.length;
    let start = 0;
    let from = this.#searched;
    for (;;) {
      // Blank lines before an event belong to nothing.
      while (start < length && (buffer[start] === LF || (buffer[start] === CR && buffer[start + 1] === LF))) {
        start += buffer[start] === LF ? 1 : 2;
      }
      if (from < start) from = start;
      const newline = buffer.indexOf(LF, from);
      if (newline === -1) {
        from = length;
        break;
      }
      const end = buffer[newline - 1] === CR ? newline - 1 : newline;
      const next = buffer[newline + 1];
      if (next === LF) {
        this.#onEvent(buffer, start, end);
        start = newline + 2;
      } else if (next === CR && buffer[newline + 2] === LF) {
        this.#onEvent(buffer, start, end);
        start = newline + 3;
      } else if (next === undefined || (next === CR && newline + 2 === length)) {
        from = newline;
        break;
      } else from = newline + 1;
    }
    const rest = start >= length ? undefined : buffer.subarray(start);
    this.#rest = rest;
    this.#searched = rest === undefined ? 0 : Math.max(0, from - start);
    if (rest !== undefined && rest.length > this.#limitBytes)
      throw new RangeError(`an event of the engine is larger than ${this.#limitBytes} bytes`);
  }
}
