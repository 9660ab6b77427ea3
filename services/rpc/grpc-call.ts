// A RawCall on top of grpc-js. Every method, even a unary one, is registered as a bidirectional stream with identity
// serializers: all methods take one path, the access check runs before a byte of the request is read, and a message
// that can't be decoded gets our error instead of grpc-js's.
import { Metadata, type ServerDuplexStream } from "@grpc/grpc-js";
import type { Clock, Timer } from "../common/clock.ts";
import { type ServiceError, asServiceError } from "../common/errors.ts";
import type { Log } from "../common/log.ts";
import { DETAILS_HEADER, toStatus } from "./errors-wire.ts";
import type { RawCall } from "./service.ts";

const nothing = (): void => {};

/** How long a caller may leave an answer untaken. Its answers then go out one at a time. */
export interface Patience {
  readonly stallMs: number;
  onStall(): void;
}

export class GrpcCall implements RawCall {
  readonly deadlineMs: number | undefined;
  onMessage: (message: Buffer) => void = nothing;
  onHalfClose: () => void = nothing;
  onCancel: () => void = nothing;
  onCallerSilent: () => void = nothing;
  onDrain: () => void = nothing;
  readonly #stream: ServerDuplexStream<Buffer, Buffer>;
  readonly #log: Log;
  readonly #clock: Clock;
  readonly #patience: Patience | undefined;
  #late: Timer | undefined;
  #ended = false;

  constructor(stream: ServerDuplexStream<Buffer, Buffer>, log: Log, clock: Clock, patience?: Patience) {
    this.#stream = stream;
    this.#log = log;
    this.#clock = clock;
    this.#patience = patience;
    // grpc-js counts by the calendar's clock, which may jump, in whole milliseconds.
    const leftMs = Number(stream.getDeadline()) - Date.now();
    this.deadlineMs = leftMs === Infinity ? undefined : Math.floor(clock.nowMs()) + leftMs;
  }

  /** Passes the call to `handler`, then begins to read. */
  run(handler: (call: RawCall) => void): void {
    const stream = this.#stream;
    // grpc-js emits `cancelled` after every end of a call, even a clean one.
    stream.on("cancelled", () => {
      this.#late?.cancel();
      if (this.#ended) return;
      this.#ended = true;
      this.#guard(this.onCancel, undefined as never);
    });
    this.#guard(handler, this);
    if (this.#ended) return;
    stream.on("drain", () => this.#guard(this.onDrain, undefined as never));
    // A client that resets its stream half-closes it first, because node:http2 works that way. Both arrive in one read,
    // and a turn later it is clear which of the two was meant.
    stream.on("end", () => setImmediate(() => this.#ended || this.#guard(this.onHalfClose, undefined as never)));
    stream.on("data", (message: Buffer) => {
      if (!this.#ended) this.#guard(this.onMessage, message);
    });
  }

  get peer(): string {
    return this.#stream.getPeer();
  }

  header(name: string): string | undefined {
    return this.#stream.metadata.get(name)[0]?.toString();
  }

  write(message: Buffer): boolean {
    if (this.#ended) return true; // No `drain` event would follow.
    if (this.#patience !== undefined) return this.#writePatiently(message, this.#patience);
    return this.#stream.write(message);
  }

  callerSilent(): void {
    if (!this.#ended) this.#guard(this.onCallerSilent, undefined as never);
  }

  /** grpc-js would take 16 answers of any size before it holds a call back. */
  #writePatiently(message: Buffer, { stallMs, onStall }: Patience): boolean {
    this.#late = this.#clock.setTimer(stallMs, onStall);
    this.#stream.write(message, () => {
      this.#late?.cancel();
      if (!this.#ended) this.#guard(this.onDrain, undefined as never);
    });
    return false;
  }

  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#stream.end();
    this.#stream.resume(); // Drops further data of the caller; unread data would delay the end of the stream.
  }

  fail(error: ServiceError): void {
    if (this.#ended) return;
    this.#ended = true;
    const status = toStatus(error);
    const metadata = new Metadata();
    metadata.set(DETAILS_HEADER, status.detailsBin);
    // grpc-js's own convention: its listener turns this event into the status and ends the stream.
    this.#stream.emit("error", { code: status.code, details: status.message, metadata });
    this.#stream.resume();
  }

  pause(): void {
    this.#stream.pause();
  }

  resume(): void {
    this.#stream.resume();
  }

  /** A throw would surface inside grpc-js as an unhandled rejection and end the process. */
  #guard<A>(callback: (argument: A) => void, argument: A): void {
    try {
      callback(argument);
    } catch (thrown) {
      const error = asServiceError(thrown);
      if (error.code === "internal")
        this.#log.error("call failed unexpectedly", { method: this.#stream.getPath(), error: thrown });
      this.fail(error);
    }
  }
}
