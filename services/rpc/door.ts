// The door of a gRPC port: what a connection may cost its server. A caller is a stranger until a call of it has passed
// the access check, and only strangers can be turned away for want of room: the connections, calls and heartbeats of
// routers and instances have no part in the strangers' budgets. A caller of any kind that takes nothing while bytes wait
// for it loses its connection.
import {
  type Http2Server,
  type IncomingHttpHeaders,
  type ServerHttp2Session,
  type ServerHttp2Stream,
  constants,
} from "node:http2";
import type { Socket } from "node:net";
import { isLoopbackHost } from "../common/address.ts";
import type { Clock, Timer } from "../common/clock.ts";
import { GRPC_CODES } from "../common/errors.ts";
import type { Log } from "../common/log.ts";
import { rateBucket, type RateBucket } from "./rate-bucket.ts";
import type { Access } from "./service.ts";

/** Why a connection was closed or a call refused; the label of a metric. */
export const DOOR_REASONS = ["connections", "idle", "flood", "stalled", "calls"] as const;
export type DoorReason = (typeof DOOR_REASONS)[number];

/**
 * Streams that a connection may have open at once, by what its caller has shown so far. HTTP/2 itself enforces them. A
 * client may open 100 before it has heard the first limit.
 */
export const STREAM_LIMITS = { stranger: 128, user: 4_096, peer: 65_536 } as const;

/** Of a stream of a user or peer. With 64 KiB, the default, a body of 10 MiB waits 160 times for this process. */
const WINDOW_BYTES = 512 * 1024;
/** Of connections whose caller is a stranger. Beyond one of these the connection that was quiet for longest is closed. */
const STRANGERS = 256;
/** Loopback is exempt: all users of a machine share it. */
const STRANGERS_PER_ADDRESS = 64;
/** Open calls of one stranger. */
const CALLS_OF_STRANGER = 64;
/** Open calls of all strangers. Beyond it the stranger with the most open calls loses its connection. */
const STRANGER_CALLS = 256;
/** Calls of one stranger; beyond it the stranger floods, and its connection is closed. */
const CALL_RATE = { burst: 80, perS: 20 } as const;
/** Time for a first call. */
const SILENT_MS = 10_000;
/** Time without a call for a stranger that has made one, such as the health check of a load balancer. */
const IDLE_MS = 300_000;
/** Time that a stranger may take nothing while bytes wait for it. */
export const STRANGER_STALL_MS = 5_000;

const SWEEP_MS = 500;
const LOG_EVERY_MS = 60_000;

export interface DoorOptions {
  readonly connectionsLimit: number;
  /** Closes the connection of a caller that is not a stranger and takes nothing for this long while bytes wait. */
  readonly stallMs: number;
  /** Whether a join token is needed, so that passing the check for it proves something. */
  readonly guarded: boolean;
  readonly clock: Clock;
  readonly log: Log;
  /**
   * Access of a method, if the caller may call it. `open` if anyone may, or if the caller may not.
   *
   * @param peer Address and port of the caller, as grpc-js writes them.
   */
  accessOf(path: string, headers: IncomingHttpHeaders, peer: string): Access;
  onRefused?(reason: DoorReason): void;
}

export interface Door {
  /** Takes or destroys a new connection. */
  admit(socket: Socket): boolean;
  /** Puts the door before the streams of an HTTP/2 server that serves the admitted connections. */
  guard(server: Http2Server): void;
  /** A call on this connection takes nothing. @param peer Its address and port, as grpc-js writes them. */
  stalled(peer: string): void;
  /** Connections and calls, for a report. */
  report(): { readonly connections: number; readonly calls: number };
  [Symbol.dispose](): void;
}

interface Caller {
  readonly socket: Socket;
  readonly address: string;
  readonly calls: RateBucket;
  kind: keyof typeof STREAM_LIMITS;
  session: ServerHttp2Session | undefined;
  openCalls: number;
  /** Calls without credentials, which count in the strangers' budget. */
  openStrangerCalls: number;
  hasCalled: boolean;
  /** Counted in sweeps, so that pauses of this process count for nothing. */
  idleSweeps: number;
  stuckSweeps: number;
  sentBytes: number;
  cut: boolean;
}

export function createDoor(o: DoorOptions): Door {
  const { clock, log } = o;
  const callers = new Map<string, Caller>();
  const bySession = new WeakMap<object, Caller>();
  /** The one that was quiet for longest comes first. */
  const strangers = new Set<Caller>();
  const perAddress = new Map<string, number>();
  /** Strangers that are not read from, because one of them floods. */
  const waiting = new Set<Caller>();
  let lettingIn = false;
  let strangerCalls = 0;
  let timer: Timer | undefined;
  let nextLogMs = 0;

  function refused(reason: DoorReason, peer: string): void {
    o.onRefused?.(reason);
    const nowMs = clock.nowMs();
    if (nowMs < nextLogMs) return;
    nextLogMs = nowMs + LOG_EVERY_MS;
    log.warn("a gRPC caller was turned away", { reason, peer, connections: callers.size, strangers: strangers.size });
  }

  function cut(caller: Caller, reason: DoorReason): void {
    if (caller.cut) return;
    caller.cut = true;
    strangerCalls -= caller.openStrangerCalls;
    caller.openStrangerCalls = 0;
    forget(caller);
    refused(reason, peerOf(caller.socket));
    closeLater(caller.socket);
  }

  /** It is not a stranger from here on. */
  function forget(caller: Caller): void {
    if (!strangers.delete(caller)) return;
    const left = perAddress.get(caller.address)! - 1;
    if (left === 0) perAddress.delete(caller.address);
    else perAddress.set(caller.address, left);
  }

  function quietest(address?: string): Caller | undefined {
    for (const caller of strangers) if (address === undefined || caller.address === address) return caller;
    return undefined;
  }

  function admit(socket: Socket): boolean {
    const address = socket.remoteAddress?.replace(/^::ffff:/, "");
    if (address === undefined) return false; // Gone already.
    const crowded = !isLoopbackHost(address) && (perAddress.get(address) ?? 0) >= STRANGERS_PER_ADDRESS;
    const full = strangers.size >= STRANGERS || callers.size >= o.connectionsLimit;
    if (crowded || full) {
      const victim = quietest(crowded ? address : undefined);
      if (victim === undefined) {
        refused("connections", peerOf(socket));
        closeLater(socket);
        return false;
      }
      cut(victim, "connections");
    }
    const peer = peerOf(socket);
    const caller: Caller = {
      socket,
      address,
      calls: rateBucket(CALL_RATE, clock),
      kind: "stranger",
      session: undefined,
      openCalls: 0,
      openStrangerCalls: 0,
      hasCalled: false,
      idleSweeps: 0,
      stuckSweeps: 0,
      sentBytes: 0,
      cut: false,
    };
    callers.set(peer, caller);
    strangers.add(caller);
    perAddress.set(address, (perAddress.get(address) ?? 0) + 1);
    socket.once("close", () => {
      callers.delete(peer);
      forget(caller);
    });
    timer ??= clock.setTimer(SWEEP_MS, sweep);
    return true;
  }

  function guard(server: Http2Server): void {
    const serve = server.listeners("stream") as ((...given: unknown[]) => void)[];
    server.removeAllListeners("stream");
    server.on("session", (session) => {
      const { remoteAddress, remotePort } = session.socket;
      const caller = callers.get(`${remoteAddress}:${remotePort}`);
      if (caller === undefined) return;
      caller.session = session;
      bySession.set(session, caller);
      if (lettingIn) hold(caller);
    });
    server.on("stream", (stream, headers, flags) => {
      const caller = bySession.get(stream.session!);
      if (caller === undefined || takes(caller, stream, headers)) for (const one of serve) one(stream, headers, flags);
    });
  }

  function takes(caller: Caller, stream: ServerHttp2Stream, headers: IncomingHttpHeaders): boolean {
    caller.openCalls++;
    caller.hasCalled = true;
    caller.idleSweeps = 0;
    const proven = caller.kind === "peer" && o.guarded;
    const access = proven ? "token" : o.accessOf(String(headers[":path"]), headers, peerOf(caller.socket));
    if (access !== "open") {
      if (caller.kind !== "peer") promote(caller, access === "token" ? "peer" : "user");
      stream.once("close", () => caller.openCalls--);
      return true;
    }
    const admitted = !caller.cut && admitsStranger(caller);
    if (admitted) {
      caller.openStrangerCalls++;
      strangerCalls++;
    }
    stream.once("close", () => {
      caller.openCalls--;
      if (!admitted || caller.cut) return;
      caller.openStrangerCalls--;
      strangerCalls--;
    });
    if (admitted) return true;
    stream.on("error", () => {});
    if (!caller.cut) refuse(stream);
    return false;
  }

  function admitsStranger(caller: Caller): boolean {
    if (strangers.delete(caller)) strangers.add(caller);
    if (!caller.calls.take()) {
      cut(caller, "flood");
      holdStrangers();
      return false;
    }
    if (caller.openStrangerCalls >= CALLS_OF_STRANGER) {
      refused("calls", peerOf(caller.socket));
      return false;
    }
    if (strangerCalls < STRANGER_CALLS) return true;
    let greediest = caller;
    for (const other of callers.values())
      if (!other.cut && other.openStrangerCalls > greediest.openStrangerCalls) greediest = other;
    cut(greediest, "calls");
    return greediest !== caller;
  }

  /**
   * What has arrived from one connection is handled in one go, calls beyond the limit too: 13 ms for the calls of one
   * read. So when one stranger floods the others wait, and then have their turns, with time for everybody else in between.
   */
  function holdStrangers(): void {
    for (const caller of strangers) hold(caller);
    if (lettingIn) return;
    lettingIn = true;
    setImmediate(letOneIn);
  }

  function hold(caller: Caller): void {
    handleOf(caller.socket)?.readStop();
    waiting.add(caller);
  }

  function letOneIn(): void {
    const [next] = waiting;
    lettingIn = next !== undefined;
    if (next === undefined) return;
    waiting.delete(next);
    if (!next.cut) handleOf(next.socket)?.readStart();
    const sinceMs = clock.nowMs();
    // After it was read: as long again for everybody else.
    setImmediate(() => clock.setTimer(Math.max(1, clock.nowMs() - sinceMs), letOneIn));
  }

  function promote(caller: Caller, kind: "user" | "peer"): void {
    if (caller.kind === kind) return;
    caller.kind = kind;
    forget(caller);
    const { session } = caller;
    // Not inside an event of the session.
    setImmediate(() => {
      if (session?.destroyed !== false || session.closed) return;
      session.settings({ maxConcurrentStreams: STREAM_LIMITS[kind], initialWindowSize: WINDOW_BYTES });
      session.setLocalWindowSize(4 * WINDOW_BYTES);
    });
  }

  function sweep(): void {
    timer = callers.size === 0 ? undefined : clock.setTimer(SWEEP_MS, sweep);
    for (const caller of callers.values()) {
      const { socket, session } = caller;
      // A session that was given up waits until its peer has taken all data, which may be never.
      const over = caller.cut || session?.destroyed === true;
      if (takesNothing(caller) || over) caller.stuckSweeps++;
      else caller.stuckSweeps = 0;
      const stuckMs = caller.stuckSweeps * SWEEP_MS;
      if (over) {
        if (stuckMs >= 2 * SWEEP_MS) closeLater(socket);
        continue;
      }
      const stranger = caller.kind === "stranger";
      if (stuckMs >= (stranger ? STRANGER_STALL_MS : o.stallMs)) {
        cut(caller, "stalled");
        continue;
      }
      if (!stranger || caller.openCalls > 0) continue;
      const idleMs = ++caller.idleSweeps * SWEEP_MS;
      if (idleMs >= (caller.hasCalled ? IDLE_MS : SILENT_MS)) cut(caller, "idle");
    }
  }

  return {
    admit,
    guard,
    stalled(peer) {
      const caller = callers.get(peer);
      if (caller !== undefined) cut(caller, "stalled");
    },
    report() {
      let calls = 0;
      for (const { openCalls } of callers.values()) calls += openCalls;
      return { connections: callers.size, calls };
    },
    [Symbol.dispose]: () => timer?.cancel(),
  };
}

/** As grpc-js writes it. */
function peerOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress}:${remotePort}`;
}

/** Whether bytes wait for the kernel, and the kernel has taken none since the last look. */
function takesNothing(caller: Caller): boolean {
  // HTTP/2 writes past the socket's own buffers, straight to its handle.
  const { _handle: handle } = caller.socket as unknown as {
    _handle?: { writeQueueSize: number; bytesWritten: number };
  };
  if (handle == null) return false;
  const sentBytes = handle.bytesWritten - handle.writeQueueSize;
  const moved = sentBytes !== caller.sentBytes;
  caller.sentBytes = sentBytes;
  return !moved && handle.writeQueueSize > 0;
}

/** Nothing more is read of it. Its end must not come inside an event of its session: see tearDown in connection.ts. */
function closeLater(socket: Socket): void {
  handleOf(socket)?.readStop();
  setImmediate(() => socket.destroy());
}

interface TcpHandle {
  readonly bytesWritten: number;
  readonly writeQueueSize: number;
  readStart(): void;
  readStop(): void;
}

/** Undefined once the socket is closed. */
function handleOf(socket: Socket): TcpHandle | undefined {
  return (socket as unknown as { _handle?: TcpHandle | null })._handle ?? undefined;
}

/** Costs a tenth of a call that reaches gRPC. */
function refuse(stream: ServerHttp2Stream): void {
  if (stream.destroyed || stream.closed) return;
  stream.respond(
    {
      [constants.HTTP2_HEADER_STATUS]: 200,
      [constants.HTTP2_HEADER_CONTENT_TYPE]: "application/grpc+proto",
      "grpc-status": String(GRPC_CODES.RESOURCE_EXHAUSTED),
      "grpc-message": "Too many calls without credentials.",
    },
    { endStream: true },
  );
  stream.resume();
}
