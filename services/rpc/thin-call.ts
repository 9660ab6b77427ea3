// One gRPC call of the thin client: an HTTP/2 stream, its messages, and its one end.
import { type ClientHttp2Stream, type IncomingHttpHeaders, constants } from "node:http2";
import type { Clock, Timer } from "../common/clock.ts";
import { GRPC_CODES, ServiceError, asServiceError } from "../common/errors.ts";
import type { Log } from "../common/log.ts";
import { Deframer, frame } from "./deframer.ts";
import { DETAILS_HEADER, decodeMessage, fromStatus } from "./errors-wire.ts";

export interface ThinHandlers {
  /** A whole protobuf message. The message may share memory with others: copy it to keep it for long. */
  onMessage(message: Buffer): void;
  /**
   * Called last and exactly once, in its own turn: never inside another call of the channel or an event of node:http2.
   */
  onEnd(error: ServiceError | undefined): void;
  onDrain?(): void;
}

export interface ThinCall {
  /** Returns false if the next write must wait for `onDrain`. Ignored once the call has ended. */
  write(message: Buffer): boolean;
  halfClose(): void;
  /** Ends the call with `cancelled`, unless it has ended. No message follows. */
  cancel(): void;
  /** Stops reading, so that the peer is held back. Messages of the current frame, at most 16 KiB, still arrive. */
  pause(): void;
  resume(): void;
}

export interface CallOptions {
  readonly timeoutMs?: number | undefined;
}

/** Starts a call of any kind. */
export type OpenCall = (path: string, handlers: ThinHandlers, options?: CallOptions) => ThinCall;

export interface StreamCallOptions {
  readonly path: string;
  readonly timeoutMs: number | undefined;
  readonly messageLimitBytes: number;
  readonly log: Log | undefined;
  readonly clock: Clock;
  /** Why the call ended without a status: the connection knows how it ended. */
  whyBroken(rstCode: number | undefined, cause: Error | undefined): ServiceError;
  /** Called once, when the call has left its connection. `onEnd` follows later. */
  onOver(): void;
}

/** Bytes that a call may write before its connection is ready, until it must wait for `onDrain`. */
const EARLY_LIMIT_BYTES = 64 * 1024;

export class StreamCall implements ThinCall {
  /** Undefined until the connection is ready. Nothing of the call is sent before. */
  #stream: ClientHttp2Stream | undefined;
  /** What was asked of the call until then. */
  #early = { frames: [] as Buffer[], bytes: 0, halfClosed: false, paused: false };
  readonly #handlers: ThinHandlers;
  readonly #options: StreamCallOptions;
  readonly #deframer: Deframer;
  readonly #timer: Timer | undefined;
  #ended = false;
  #read = false;
  #answered = false;
  #trailers: IncomingHttpHeaders | undefined;

  constructor(handlers: ThinHandlers, options: StreamCallOptions) {
    this.#handlers = handlers;
    this.#options = options;
    this.#deframer = new Deframer(options.messageLimitBytes, (message) => {
      // Checked for each message: the handler of the previous one may have cancelled.
      if (!this.#ended) handlers.onMessage(message);
    });
    if (options.timeoutMs !== undefined) {
      this.#timer = options.clock.setTimer(options.timeoutMs, () => {
        this.#end(new ServiceError("deadline_exceeded", "The call did not end in time."));
      });
    }
  }

  /** The connection is ready: sends the call. */
  begin(stream: ClientHttp2Stream): void {
    this.#stream = stream;
    stream.on("response", (headers) => this.#onResponse(headers));
    stream.on("data", (chunk: Buffer) => this.#onData(chunk));
    stream.on("trailers", (headers) => {
      this.#trailers = headers;
      if (this.#read) this.#endByStatus();
    });
    stream.on("end", () => {
      this.#read = true;
      if (this.#trailers !== undefined) return this.#endByStatus();
      // The trailers' event may follow in this turn. Without trailers the stream would stay half open.
      setImmediate(() => this.#endBroken(undefined));
    });
    stream.on("error", (error) => this.#endBroken(error));
    stream.on("close", () => this.#endBroken(undefined));
    if (this.#handlers.onDrain !== undefined) stream.on("drain", () => this.#onDrain());
    const { frames, bytes, halfClosed, paused } = this.#early;
    this.#early = { frames: [], bytes: 0, halfClosed, paused };
    for (const early of frames) stream.write(early);
    if (paused) stream.pause();
    if (halfClosed) stream.end();
    else if (bytes >= EARLY_LIMIT_BYTES && !stream.writableNeedDrain) this.#onDrain();
  }

  /** The peer has begun to answer. */
  get answered(): boolean {
    return this.#answered;
  }

  write(message: Buffer): boolean {
    if (this.#ended) return true; // It would never drain.
    const stream = this.#stream;
    if (stream === undefined) return this.#writeEarly(frame(message));
    if (stream.writableEnded || stream.destroyed) return true;
    return stream.write(frame(message));
  }

  halfClose(): void {
    if (this.#ended) return;
    if (this.#stream === undefined) this.#early.halfClosed = true;
    else this.#stream.end();
  }

  cancel(): void {
    this.#end(new ServiceError("cancelled", "The call was cancelled."));
  }

  /** Ends the call as if its connection had broken. */
  lose(): void {
    const cause = new Error("the peer is silent");
    this.#end(new ServiceError("instance_lost", "The instance does not answer.", { cause }));
  }

  /** The connection ended before the call could begin. */
  neverBegan(): void {
    this.#endBroken(undefined);
  }

  pause(): void {
    if (this.#stream === undefined) this.#early.paused = true;
    else this.#stream.pause();
  }

  resume(): void {
    if (this.#stream === undefined) this.#early.paused = false;
    else this.#stream.resume();
  }

  #writeEarly(framed: Buffer): boolean {
    const early = this.#early;
    if (early.halfClosed) return true;
    early.frames.push(framed);
    early.bytes += framed.length;
    return early.bytes < EARLY_LIMIT_BYTES;
  }

  #onResponse(headers: IncomingHttpHeaders): void {
    const status = Number(headers[":status"]);
    if (headers["grpc-status"] !== undefined) {
      this.#trailers = headers; // Trailers-only: the call failed before its first message.
    } else if (status !== 200 || !String(headers["content-type"]).startsWith("application/grpc")) {
      this.#end(notGrpc(status, headers["content-type"]));
    } else {
      this.#answered = true;
    }
  }

  #onData(chunk: Buffer): void {
    if (this.#ended) return;
    try {
      this.#deframer.push(chunk);
    } catch (thrown) {
      this.#endThrown(thrown);
    }
  }

  #onDrain(): void {
    if (this.#ended) return;
    try {
      this.#handlers.onDrain?.();
    } catch (thrown) {
      this.#endThrown(thrown);
    }
  }

  #endByStatus(): void {
    const trailers = this.#trailers!;
    const code = Number(trailers["grpc-status"] ?? GRPC_CODES.UNKNOWN);
    if (code === 0) {
      const cut = this.#deframer.unfinished;
      return this.#end(
        cut ? new ServiceError("instance_lost", "The answer ended in the middle of a message.") : undefined,
        true,
      );
    }
    const details = trailers[DETAILS_HEADER];
    const detailsBin = typeof details === "string" ? Buffer.from(details, "base64") : undefined;
    this.#end(
      fromStatus(code, decodeMessage(String(trailers["grpc-message"] ?? "")), detailsBin, this.#answered),
      true,
    );
  }

  #endBroken(cause: Error | undefined): void {
    if (this.#ended) return;
    // A reported failure counts even if the connection broke after it. An OK counts only if everything was read:
    // messages may have been lost with the connection.
    const status = this.#trailers?.["grpc-status"];
    if (status !== undefined && (this.#read || status !== "0")) return this.#endByStatus();
    this.#end(this.#options.whyBroken(this.#stream?.rstCode, cause));
  }

  /** @param byPeer Whether the peer has ended its side, with or without an error. */
  #end(error: ServiceError | undefined, byPeer = false): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#timer?.cancel();
    this.#leave(byPeer);
    this.#options.onOver();
    // A listener may do anything, such as close the channel; inside an event of node:http2 that can be fatal (see
    // `tearDown` in connection.ts).
    setImmediate(() => {
      try {
        this.#handlers.onEnd(error);
      } catch (thrown) {
        this.#logBug(thrown);
      }
    });
  }

  #leave(byPeer: boolean): void {
    const stream = this.#stream;
    if (stream === undefined || stream.closed || stream.destroyed) return;
    // Our side is then ended, not reset: nghttp2 treats more than 33 resets a second, once 1,000 are used up, as an
    // attack and breaks the connection with all its calls. Unsent data is the exception: the peer will no longer read
    // it.
    if (byPeer && stream.writableLength === 0) stream.end();
    else stream.close(constants.NGHTTP2_CANCEL);
  }

  /** A throw of a handler would surface inside node:http2 and end the process, with all its other calls. */
  #endThrown(thrown: unknown): void {
    const error = asServiceError(thrown);
    if (thrown !== error) this.#logBug(thrown);
    this.#end(error);
  }

  #logBug(thrown: unknown): void {
    this.#options.log?.error("call handler failed unexpectedly", { method: this.#options.path, error: thrown });
  }
}

/** https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md, as far as retries depend on it. */
function notGrpc(status: number, contentType: string | undefined): ServiceError {
  const cause = new Error(`HTTP status ${status}, content-type ${contentType}`);
  return status === 429 || (status >= 502 && status <= 504)
    ? new ServiceError("instance_unavailable", "The instance can't be reached.", { cause })
    : new ServiceError("internal", "The peer does not speak gRPC.", { cause });
}
