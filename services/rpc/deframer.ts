// gRPC's framing: one byte of flags, four of length, then the message. A DATA frame of HTTP/2 may hold several
// messages, or any part of one.
// https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests
import { ServiceError } from "../common/errors.ts";

const HEAD_BYTES = 5;

/** A message with its header, as one Buffer. */
export function frame(message: Buffer): Buffer {
  const framed = Buffer.allocUnsafe(HEAD_BYTES + message.length);
  framed[0] = 0;
  framed.writeUInt32BE(message.length, 1);
  message.copy(framed, HEAD_BYTES);
  return framed;
}

export class Deframer {
  readonly #limitBytes: number;
  readonly #onMessage: (message: Buffer) => void;
  // The rest of the chunks so far: `#heldBytes` bytes of an unfinished header or message, which needs `#neededBytes`.
  #held: Buffer[] = [];
  #heldBytes = 0;
  #neededBytes = HEAD_BYTES;

  /** @param limitBytes Longest accepted message. */
  constructor(limitBytes: number, onMessage: (message: Buffer) => void) {
    this.#limitBytes = limitBytes;
    this.#onMessage = onMessage;
  }

  /** Whether the stream stopped inside a message. */
  get unfinished(): boolean {
    return this.#heldBytes > 0;
  }

  /**
   * Passes on every message that `chunk` completes. A message that lies whole in `chunk` shares its memory.
   *
   * @throws ServiceError `internal` for a message that is too long or compressed.
   */
  push(chunk: Buffer): void {
    let bytes = chunk;
    if (this.#heldBytes > 0) {
      this.#held.push(chunk);
      this.#heldBytes += chunk.length;
      if (this.#heldBytes < this.#neededBytes) return;
      // Joined once the missing part has arrived, not at every chunk: a long message has thousands of chunks.
      bytes = Buffer.concat(this.#held, this.#heldBytes);
      this.#held = [];
      this.#heldBytes = 0;
    }
    let at = 0;
    this.#neededBytes = HEAD_BYTES;
    while (bytes.length - at >= HEAD_BYTES) {
      const end = at + HEAD_BYTES + this.#lengthAt(bytes, at);
      if (end > bytes.length) {
        this.#neededBytes = end - at;
        break;
      }
      this.#onMessage(bytes.subarray(at + HEAD_BYTES, end));
      at = end;
    }
    if (at === bytes.length) return;
    this.#held.push(bytes.subarray(at));
    this.#heldBytes = bytes.length - at;
  }

  #lengthAt(bytes: Buffer, at: number): number {
    if (bytes[at] !== 0) {
      throw new ServiceError("internal", "The peer sent a compressed message, although no compression was agreed on.");
    }
    const length = bytes.readUInt32BE(at + 1);
    if (length > this.#limitBytes) {
      throw new ServiceError(
        "internal",
        `The peer sent a message of ${length} bytes; the limit is ${this.#limitBytes}.`,
      );
    }
    return length;
  }
}
