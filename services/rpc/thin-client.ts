// The token path's client: gRPC on node:http2 itself, callbacks only. In the whole path a message costs it about 5 us,
// grpc-js 16 to 18 (Node 24, 256 streams), and it knows at once when a connection is gone. One connection at a time.
import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants } from "node:http2";
import { type Socket, connect as connectSocket } from "node:net";
import { ServiceError } from "../common/errors.ts";
import type { Log } from "../common/log.ts";
import { watchLiveness } from "./liveness.ts";
import { StreamCall, type ThinCall, type ThinHandlers } from "./thin-call.ts";

export type { ThinCall, ThinHandlers } from "./thin-call.ts";

export interface ThinChannelOptions {
  readonly token?: string | undefined;
  readonly log: Log;
  /** Default 500. */
  readonly pingIntervalMs?: number;
  /** Without a byte for so long the connection is doubted. Default 1300. */
  readonly doubtMs?: number;
  /** Without a byte for so long the connection is given up. Default 2000. */
  readonly silenceMs?: number;
  /** For the connection to be made. Default: as `silenceMs`. */
  readonly connectTimeoutMs?: number;
  /** Longest message that is taken. Default 64 MiB. */
  readonly messageLimitBytes?: number;
  onState?(up: boolean): void;
  /** `doubted` has changed. */
  onDoubt?(): void;
}

export interface ThinChannel {
  /** host:port. */
  readonly address: string;
  /** Whether there is a connection that takes new calls. */
  readonly up: boolean;
  /** Whether nothing was heard on its connection for so long that what can be done elsewhere should be. */
  readonly doubted: boolean;
  /** Ends the calls on a doubted connection that nothing came of yet, as lost. Those that were answered go on. */
  dropUnanswered(): void;
  /**
   * Calls a unary method, or any that answers one message. Rejects with ServiceError.
   *
   * @param options.onCancelable Gets a function that cancels the call.
   */
  unary(
    path: string,
    message: Buffer,
    options?: { timeoutMs?: number | undefined; onCancelable?(cancel: () => void): void },
  ): Promise<Buffer>;
  /** Begins a call of any kind; connects first where there is no connection. */
  open(path: string, handlers: ThinHandlers, options?: { timeoutMs?: number | undefined }): ThinCall;
  /** Cancels what runs. Calls after it fail with `instance_unavailable`. May be called twice. */
  close(): Promise<void>;
}

// Above 1 MiB nothing gets faster; the default of 64 KiB stalls at 256 streams.
const WINDOW_BYTES = 1024 * 1024;
const MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024;
/** `grpc-timeout` has eight digits: in milliseconds, 27 hours. */
const TIMEOUT_LIMIT_MS = 99_999_999;
/** A connection has stream ids for 2^30 calls. */
const CALLS_PER_CONNECTION = 500_000_000;

/** Connects at the first call, and again at the first call after a connection was lost. */
export function connectThin(address: string, options: ThinChannelOptions): ThinChannel {
  return new Channel(address, options);
}

interface Connection {
  readonly session: ClientHttp2Session;
  readonly socket: Socket;
  /** Calls that were not answered yet. */
  readonly unanswered: Set<StreamCall>;
  connected: boolean;
  doubted: boolean;
  calls: number;
  /** Why it was given up, or broke. */
  cause: Error | undefined;
}

class Channel implements ThinChannel {
  readonly address: string;
  readonly #options: ThinChannelOptions;
  readonly #connections = new Set<Connection>();
  readonly #authorization: string | undefined;
  // The one that takes new calls. Others may be finishing theirs after GOAWAY.
  #current: Connection | undefined;
  #up = false;
  #closed = false;

  constructor(address: string, options: ThinChannelOptions) {
    this.address = address;
    this.#options = options;
    this.#authorization = options.token ? `Bearer ${options.token}` : undefined;
  }

  get up(): boolean {
    return this.#up && this.#usable() !== undefined;
  }

  get doubted(): boolean {
    return this.#usable()?.doubted === true;
  }

  dropUnanswered(): void {
    for (const { doubted, unanswered } of this.#connections)
      if (doubted) for (const call of [...unanswered]) call.lose();
  }

  open(path: string, handlers: ThinHandlers, { timeoutMs }: { timeoutMs?: number | undefined } = {}): ThinCall {
    if (this.#closed) return refusedCall(handlers, new ServiceError("instance_unavailable", "The channel is closed."));
    const connection = this.#usable() ?? this.#connect();
    if (++connection.calls >= CALLS_PER_CONNECTION) this.#retire(connection);
    const limitedMs =
      timeoutMs === undefined ? undefined : Math.min(Math.max(Math.ceil(timeoutMs), 1), TIMEOUT_LIMIT_MS);
    const stream = connection.session.request({
      ":method": "POST",
      ":path": path,
      "content-type": "application/grpc+proto",
      te: "trailers",
      "user-agent": "tandem",
      ...(this.#authorization === undefined ? {} : { authorization: this.#authorization }),
      ...(limitedMs === undefined ? {} : { "grpc-timeout": `${limitedMs}m` }),
    });
    const { unanswered } = connection;
    const call: StreamCall = new StreamCall(stream, handlers, {
      path,
      timeoutMs: limitedMs,
      messageLimitBytes: this.#options.messageLimitBytes ?? MESSAGE_LIMIT_BYTES,
      log: this.#options.log,
      whyBroken: (broken, cause) => this.#whyBroken(connection, broken, cause),
      onAnswered: () => unanswered.delete(call),
    });
    unanswered.add(call);
    return call;
  }

  unary(
    path: string,
    message: Buffer,
    options: { timeoutMs?: number | undefined; onCancelable?(cancel: () => void): void } = {},
  ): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      let answer: Buffer | undefined;
      let count = 0;
      const call = this.open(
        path,
        {
          onMessage(received) {
            answer = received;
            count++;
          },
          onEnd(error) {
            if (error !== undefined) reject(error);
            else if (answer !== undefined && count === 1) resolve(answer);
            else reject(new ServiceError("internal", `The peer answered with ${count} messages instead of one.`));
          },
        },
        options,
      );
      call.write(message);
      call.halfClose();
      options.onCancelable?.(() => call.cancel());
    });
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#current = undefined;
    this.#setUp(false);
    await Promise.all(
      [...this.#connections].map(
        (connection) =>
          new Promise<void>((resolve) => {
            connection.session.once("close", resolve);
            endSession(connection, () => connection.socket.destroySoon());
          }),
      ),
    );
  }

  /** A handler that calls again from within `onEnd` may come before the connection's own events. */
  #usable(): Connection | undefined {
    const session = this.#current?.session;
    if (session !== undefined && (session.closed || session.destroyed)) this.#retire(this.#current!);
    return this.#current;
  }

  #connect(): Connection {
    const { silenceMs = 2000, doubtMs = 1300, pingIntervalMs = 500, connectTimeoutMs = silenceMs, log } = this.#options;
    const url = new URL(`http://${this.address}`);
    const host = url.hostname.replace(/^\[|\]$/g, "");
    const socket = connectSocket({ host, port: Number(url.port || 80), noDelay: true });
    const session = connect(url.origin, {
      createConnection: () => socket,
      settings: { initialWindowSize: WINDOW_BYTES, enablePush: false },
      maxSessionMemory: 1000, // Megabytes. The default of 10 kills a busy connection.
    });
    const connection: Connection = {
      session,
      socket,
      unanswered: new Set(),
      connected: false,
      doubted: false,
      calls: 0,
      cause: undefined,
    };
    this.#connections.add(connection);
    this.#current = connection;

    const giveUp = (problem: string): void => {
      connection.cause ??= new Error(`${this.address}: ${problem}`);
      this.#retire(connection);
      // The session alone would wait for a peer that does not answer to take what was sent.
      endSession(connection, () => socket.destroy());
    };
    const dialTimer = setTimeout(() => giveUp(`no connection in ${connectTimeoutMs} ms`), connectTimeoutMs);
    let stopWatch: (() => void) | undefined;
    session.once("connect", () => {
      clearTimeout(dialTimer);
      if (session.closed || session.destroyed) return; // The channel was closed in the meantime.
      connection.connected = true;
      session.setLocalWindowSize(WINDOW_BYTES); // The setting above is for each stream, this for all together.
      stopWatch = watchLiveness(
        session,
        socket,
        { pingIntervalMs, doubtMs, silenceMs },
        {
          onDoubt: (doubted) => {
            connection.doubted = doubted;
            if (this.#current === connection) this.#options.onDoubt?.();
          },
          onSilent: () => giveUp(`silent for ${silenceMs} ms`),
        },
      );
      if (this.#current === connection) this.#setUp(true);
    });
    session.on("error", (error) => {
      connection.cause ??= error;
    });
    session.once("goaway", () => this.#retire(connection));
    socket.once("close", () => this.#retire(connection)); // No new call on it, though its session closes a turn later.
    session.once("close", () => {
      clearTimeout(dialTimer);
      stopWatch?.();
      this.#connections.delete(connection);
      this.#retire(connection);
      log.debug("connection closed", { address: this.address, cause: connection.cause?.message });
    });
    return connection;
  }

  /** New calls get a new connection; this one ends with its last call. */
  #retire(connection: Connection): void {
    if (this.#current !== connection) return;
    this.#current = undefined;
    this.#setUp(false);
    if (!connection.session.closed) queueMicrotask(() => connection.session.close());
  }

  #setUp(up: boolean): void {
    if (this.#up === up) return;
    this.#up = up;
    this.#options.onState?.(up);
  }

  #whyBroken(connection: Connection, stream: ClientHttp2Stream, streamCause: Error | undefined): ServiceError {
    if (this.#closed) return new ServiceError("cancelled", "The channel was closed.");
    const cause =
      connection.cause ?? streamCause ?? new Error(`${this.address}: stream ended with HTTP/2 code ${stream.rstCode}`);
    // Refused: the peer promises that it has not begun the call (RFC 9113, 8.7).
    if (!connection.connected || stream.rstCode === constants.NGHTTP2_REFUSED_STREAM) {
      return new ServiceError("instance_unavailable", "The instance can't be reached.", { cause });
    }
    return new ServiceError("instance_lost", "The connection to the instance broke.", { cause });
  }
}

/**
 * Ends a session with all its calls, in a turn of its own. Node 20 never returns from `session.destroy()` inside an event
 * of that session: it sends from within nghttp2's receive, and nghttp2 asks without end for the data of a stream that
 * Node has removed already (seen on 20.20.2: the event loop stands still, and memory grows by hundreds of MB a second).
 */
function endSession({ session, cause }: Connection, endSocket: () => void): void {
  setImmediate(() => {
    if (cause === undefined) session.destroy();
    else session.destroy(cause, constants.NGHTTP2_CANCEL);
    endSocket();
  });
}

function refusedCall(handlers: ThinHandlers, error: ServiceError): ThinCall {
  const nothing = (): void => {};
  process.nextTick(() => handlers.onEnd(error));
  return { write: () => true, halfClose: nothing, cancel: nothing, pause: nothing, resume: nothing };
}
