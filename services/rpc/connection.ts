// One HTTP/2 connection of a channel: its calls, its heartbeat, and its end.
import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants } from "node:http2";
import { Socket, connect as connectTcp, isIP } from "node:net";
import { connect as connectTls } from "node:tls";
import { endAddress, splitAddress } from "../common/address.ts";
import type { Clock, Timer } from "../common/clock.ts";
import { ServiceError } from "../common/errors.ts";
import type { Log } from "../common/log.ts";
import { HEARTBEAT_HEADER, type Heartbeat, type HeartbeatOptions, startHeartbeat } from "./heartbeat.ts";
import { PACE } from "./liveness.ts";
import { SESSION_HEADER, provePeer } from "./prove.ts";
import { CERTIFICATE_FAULTS, type Tls, handshakeFault } from "./tls.ts";
import { type CallOptions, StreamCall, type ThinHandlers } from "./thin-call.ts";

/**
 * - `connecting`: the handshake of TCP or TLS is under way, or the proof of identity. Calls wait; nothing of them is sent.
 * - `up`: the connection takes calls.
 * - `suspect`: as `up`, but no byte has come for a while, although the peer was asked for one.
 * - `draining`: it takes no more calls and ends with its last one, because the peer (GOAWAY) or the channel asked for
 * it.
 * - `closed`: the connection is over, and its calls end.
 */
export type ConnectionState =
  | { readonly kind: "connecting"; readonly timeout: Timer }
  | { readonly kind: "up" | "suspect" | "draining"; readonly heartbeat: Heartbeat | undefined }
  | { readonly kind: "closed"; readonly because: LossReason | "disposed"; readonly cause: Error | undefined };

/**
 * - `unreachable`: the connection was never established.
 * - `untrusted`: the peer did not prove who it is, or refuses our proof. It was told nothing.
 * - `broken`: the peer or the link broke. `silent`: no byte came for too long.
 * - `ended`: cleanly, with its last call.
 */
export type LossReason = "unreachable" | "untrusted" | "broken" | "silent" | "ended";

export interface ConnectionOptions {
  /** host:port. */
  readonly address: string;
  /** Join token, which both sides prove to know. Empty or undefined: neither does. */
  readonly token: string | undefined;
  /** The peers' certificates take the place of the token. */
  readonly tls: Tls | undefined;
  readonly clock: Clock;
  readonly log: Log | undefined;
  readonly connectTimeoutMs: number;
  readonly messageLimitBytes: number;
  /** Runs on the connection while it is up. */
  readonly heartbeat: HeartbeatOptions | undefined;
  /** More time for a silent peer. Default: none. */
  readonly patienceMs?: (() => number) | undefined;
  onState(connection: Connection): void;
}

// More than 1 MiB brings no speed; the default of 64 KiB stalls at 256 streams.
const WINDOW_BYTES = 1024 * 1024;
/** `grpc-timeout` has eight digits: in milliseconds, 27 hours. */
const TIMEOUT_LIMIT_MS = 99_999_999;
/** Time for the kernel to take the last bytes of a connection. */
const FLUSH_MS = 500;
/** A TLS server does this to a caller in clear. So does a proxy whose server is gone. */
export const NO_ANSWER = "it closed the connection without a word: does it require TLS (tls.cert, tls.key, tls.ca)?";
/** A connection has stream ids for 2^30 calls. */
const CALLS_LIMIT = 500_000_000;

export class Connection {
  /** Resolves when the session and its socket are closed. */
  readonly gone: Promise<void>;
  readonly #o: ConnectionOptions;
  readonly #session: ClientHttp2Session;
  readonly #socket: Socket;
  /** Calls that have not ended, without the heartbeat. */
  readonly #calls = new Set<StreamCall>();
  /** Calls that wait for the connection, and how each begins. */
  readonly #waiting = new Map<StreamCall, () => void>();
  /** In each call, once the connection is proven. */
  #proof: Readonly<Record<string, string>> | undefined;
  #callsTotal = 0;
  #reached = false;
  #state: ConnectionState;

  constructor(o: ConnectionOptions) {
    this.#o = o;
    const socket = connectSocket(o.address, o.tls);
    const session = connect(o.tls === undefined ? "http://localhost" : "https://localhost", {
      createConnection: () => socket,
      settings: { initialWindowSize: WINDOW_BYTES, enablePush: false },
      maxSessionMemory: 1000, // Megabytes. The default of 10 kills a busy connection.
    });
    this.#socket = socket;
    this.#session = session;
    const late = (): void => this.#end("unreachable", new Error(`no connection in ${o.connectTimeoutMs} ms`));
    this.#state = { kind: "connecting", timeout: o.clock.setTimer(o.connectTimeoutMs, late) };
    session.once("connect", () => this.#connected());
    session.once("goaway", () => this.drain());
    session.on("error", (error) => this.#broke(error));
    socket.once("close", () => this.#broke(undefined)); // No new call from here on, although the session closes a turn later.
    this.gone = new Promise((resolve) => {
      session.once("close", () => {
        this.#broke(undefined);
        resolve();
      });
    });
  }

  get state(): ConnectionState {
    return this.#state;
  }

  /** Whether a call may be opened. Also notices a closed session whose events are still pending. */
  checkOpen(): boolean {
    if (!this.#session.closed && !this.#session.destroyed) {
      return this.#state.kind !== "draining" && this.#state.kind !== "closed";
    }
    this.drain();
    return false;
  }

  open(path: string, handlers: ThinHandlers, { timeoutMs }: CallOptions = {}): StreamCall {
    const limitedMs =
      timeoutMs === undefined ? undefined : Math.min(Math.max(Math.ceil(timeoutMs), 1), TIMEOUT_LIMIT_MS);
    const headers = limitedMs === undefined ? undefined : { "grpc-timeout": `${limitedMs}m` };
    const call: StreamCall = this.#make(path, handlers, limitedMs, () => {
      this.#calls.delete(call);
      this.#waiting.delete(call);
      if (this.#state.kind === "draining") this.#endIfIdle();
    });
    this.#calls.add(call);
    const begin = (): void => call.begin(this.#request(path, headers));
    if (this.#state.kind === "connecting") this.#waiting.set(call, begin);
    else begin();
    if (++this.#callsTotal >= CALLS_LIMIT) this.drain();
    return call;
  }

  /** Ends, as lost, the calls that the peer has not begun to answer. */
  dropUnanswered(): void {
    for (const call of [...this.#calls]) if (!call.answered) call.lose();
  }

  beat(): void {
    if (this.#state.kind === "up" || this.#state.kind === "suspect") this.#state.heartbeat?.beat();
  }

  /** Takes no more calls, and ends with its last one. While connecting, does so only if no call waits. */
  drain(): void {
    const { state } = this;
    if (state.kind === "connecting" && this.#calls.size === 0) this.#end("ended", undefined);
    if (state.kind !== "up" && state.kind !== "suspect") return;
    this.#become({ kind: "draining", heartbeat: state.heartbeat });
    this.#endIfIdle();
  }

  /** Closes the connection and cancels its calls. */
  close(): void {
    this.#end("disposed", undefined);
  }

  #connected(): void {
    if (this.#state.kind !== "connecting" || this.#session.closed || this.#session.destroyed) return;
    this.#session.setLocalWindowSize(WINDOW_BYTES); // The setting above applies to each stream, this one to all together.
    const { token, tls, address } = this.#o;
    this.#reached = true;
    if (!token || tls !== undefined) return this.#ready();
    provePeer({
      token,
      dialed: address,
      reached: endAddress(this.#socket, "remote"),
      open: (path, handlers) => this.#openNow(path, handlers),
      onSession: (session) => {
        this.#proof = { [SESSION_HEADER]: session };
        this.#ready();
      },
      onRefused: (error) => this.#end("untrusted", error),
    });
  }

  #ready(): void {
    if (this.#state.kind !== "connecting") return;
    this.#state.timeout.cancel();
    this.#become({ kind: "up", heartbeat: this.#startHeartbeat() });
    // A call that has ended meanwhile is no longer among them.
    for (const begin of this.#waiting.values()) begin();
    this.#waiting.clear();
  }

  #startHeartbeat(): Heartbeat | undefined {
    const { heartbeat, clock } = this.#o;
    if (heartbeat === undefined) return undefined;
    const headers = { [HEARTBEAT_HEADER]: String(PACE.beatMs) };
    return startHeartbeat(heartbeat, {
      clock,
      open: (path, handlers) => (this.checkOpen() ? this.#openNow(path, handlers, headers) : undefined),
      bytesRead: () => this.#socket.bytesRead,
      patienceMs: () => this.#o.patienceMs?.() ?? 0,
      onSuspect: (suspect) => {
        const { state } = this;
        if (state.kind !== (suspect ? "up" : "suspect")) return;
        this.#become({ kind: suspect ? "suspect" : "up", heartbeat: state.heartbeat });
      },
      onSilent: () => this.#end("silent", new Error("no byte came from it")),
    });
  }

  /** A call of the connection's own, which doesn't keep it open. */
  #openNow(path: string, handlers: ThinHandlers, headers?: Readonly<Record<string, string>>): StreamCall {
    const call = this.#make(path, handlers, undefined, () => {});
    call.begin(this.#request(path, headers));
    return call;
  }

  #make(path: string, handlers: ThinHandlers, timeoutMs: number | undefined, onOver: () => void): StreamCall {
    const { messageLimitBytes, log, clock } = this.#o;
    return new StreamCall(handlers, {
      path,
      timeoutMs,
      messageLimitBytes,
      log,
      clock,
      whyBroken: (rstCode, cause) => this.#whyBroken(rstCode, cause),
      onOver,
    });
  }

  #request(path: string, headers: Readonly<Record<string, string>> | undefined): ClientHttp2Stream {
    return this.#session.request({
      ":authority": this.#o.address,
      ":method": "POST",
      ":path": path,
      "content-type": "application/grpc+proto",
      te: "trailers",
      "user-agent": "tandem",
      ...this.#proof,
      ...headers,
    });
  }

  #become(state: ConnectionState): void {
    this.#state = state;
    this.#o.onState(this);
  }

  #endIfIdle(): void {
    if (this.#calls.size > 0 || this.#state.kind !== "draining") return;
    const end = (): void => this.#end("ended", undefined);
    if (this.#state.heartbeat === undefined) end();
    else this.#state.heartbeat.leave(end);
  }

  #broke(cause: Error | undefined): void {
    const { kind } = this.#state;
    const fault = kind === "connecting" && this.#o.tls !== undefined ? handshakeFault(cause) : undefined;
    if (fault !== undefined)
      return this.#end(
        "untrusted",
        new ServiceError("unauthenticated", `The peer's ${CERTIFICATE_FAULTS[fault]}`, { cause }),
      );
    const asItShould = kind === "draining" && this.#calls.size === 0;
    const why = this.#reached && this.#socket.bytesRead === 0 && !asItShould ? new Error(NO_ANSWER, { cause }) : cause;
    this.#end(kind === "connecting" ? "unreachable" : asItShould ? "ended" : "broken", why);
  }

  #end(because: LossReason | "disposed", cause: Error | undefined): void {
    const { state } = this;
    if (state.kind === "closed") return;
    if (state.kind === "connecting") state.timeout.cancel();
    else state.heartbeat?.stop();
    tearDown(this.#session, this.#socket, cause, this.#o.clock);
    this.#o.log?.debug("connection closed", { address: this.#o.address, because, cause: cause?.message });
    this.#become({ kind: "closed", because, cause });
    for (const call of [...this.#waiting.keys()]) call.neverBegan();
  }

  #whyBroken(rstCode: number | undefined, streamCause: Error | undefined): ServiceError {
    const { state } = this;
    const closed = state.kind === "closed" ? state : undefined;
    if (closed?.because === "disposed") return new ServiceError("cancelled", "The channel was closed.");
    if (closed?.because === "untrusted")
      return new ServiceError("instance_unavailable", "The instance did not prove who it is.", { cause: closed.cause });
    const what = closed?.cause ?? streamCause ?? `stream ended with HTTP/2 code ${rstCode}`;
    const cause = new Error(`${this.#o.address}: ${what instanceof Error ? what.message : what}`, { cause: what });
    // Refused: the peer promises that it has not begun the call (RFC 9113, 8.7).
    const neverBegan =
      state.kind === "connecting" || closed?.because === "unreachable" || rstCode === constants.NGHTTP2_REFUSED_STREAM;
    return neverBegan
      ? new ServiceError("instance_unavailable", "The instance can't be reached.", { cause })
      : new ServiceError("instance_lost", "The connection to the instance broke.", { cause });
  }
}

/** Connects. Even an impossible address fails by an event, as a connection does. */
function connectSocket(address: string, tls: Tls | undefined): Socket {
  const { host, port } = splitAddress(address);
  const to = { host, port, noDelay: true };
  try {
    if (tls === undefined) return connectTcp(to);
    return connectTls({ ...to, ...(isIP(host) === 0 ? { servername: host } : {}), ...tls.dialing(host) });
  } catch (error) {
    return new Socket().destroy(error as Error);
  }
}

/**
 * Ends a session with all its calls, in a later turn. Node 20 never returns from `session.destroy()` inside an event of
 * that session: Node sends from within nghttp2's receive, and nghttp2 asks endlessly for the data of a stream that Node
 * has already removed (seen on 20.20.2: the event loop hangs, and memory grows by hundreds of MB a second).
 */
function tearDown(session: ClientHttp2Session, socket: Socket, cause: Error | undefined, clock: Clock): void {
  setImmediate(() => {
    if (cause === undefined) {
      session.destroy();
      // The last frames are still sent, if the peer accepts them.
      const late = clock.setTimer(FLUSH_MS, () => socket.destroy());
      socket.once("close", () => late.cancel());
      socket.destroySoon();
    } else {
      session.destroy(cause, constants.NGHTTP2_CANCEL);
      // The session alone would wait until an unresponsive peer has taken all data.
      socket.destroy();
    }
  });
}
