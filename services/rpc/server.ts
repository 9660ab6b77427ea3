// Serves gRPC with @grpc/grpc-js: the given services, grpc.health.v1 and reflection.
import { setMaxListeners } from "node:events";
import type { Socket } from "node:net";
import { Server, ServerCredentials, type ServerDuplexStream } from "@grpc/grpc-js";
import { isLoopbackHost, splitAddress } from "../common/address.ts";
import { type Clock, systemClock } from "../common/clock.ts";
import { ServiceError } from "../common/errors.ts";
import { stage } from "../common/lifecycle.ts";
import type { Log } from "../common/log.ts";
import { type Gate, type Proven, type Secrets, createGate } from "./access.ts";
import { type Door, type DoorReason, STRANGER_STALL_MS, STREAM_LIMITS, createDoor } from "./door.ts";
import { GrpcCall } from "./grpc-call.ts";
import { createHealth } from "./health.ts";
import { HEARTBEAT_HEADER } from "./heartbeat.ts";
import { type Identity, createIdentity } from "./identity-service.ts";
import { type Listener, listenTcp } from "./listen.ts";
import { watchLiveness } from "./liveness.ts";
import { SESSION_HEADER } from "./prove.ts";
import { reflectionServices } from "./reflection.ts";
import { MESSAGE_LIMIT_BYTES, type RawCall, type RpcService, methodPath } from "./service.ts";
import type { Tls } from "./tls.ts";
import { serveTyped } from "./typed-call.ts";

export interface RpcServer {
  /** The bound host:port. */
  readonly address: string;
  /**
   * Sets the status of "" and of every service in grpc.health.v1. A new server is not serving until this is called.
   *
   * @param reason Why the server is not serving, for people.
   */
  setServing(serving: boolean, reason?: string): void;
  /** Stops accepting, lets running calls end for `graceMs`, then breaks them. May be called twice. */
  [Symbol.asyncDispose](): Promise<void>;
}

export interface RpcServerOptions extends Secrets {
  /** host:port; port 0 takes a free one. */
  readonly listen: string;
  /** host:port under which others dial this server, if different from `listen`. */
  readonly advertise?: string | undefined;
  /** Serves TLS. A certificate takes the place of the token. */
  readonly tls?: Tls | undefined;
  readonly services: readonly RpcService[];
  readonly log: Log;
  /** Default 2000. */
  readonly graceMs?: number;
  /** Limits the open connections. Default 4096. */
  readonly connectionsLimit?: number;
  /** A caller that takes nothing for this long while bytes wait for it loses its connection. Default 60 s. */
  readonly stallMs?: number;
  /** A caller lost its connection, or a call of it was refused, for want of room or patience. */
  onRefused?(reason: DoorReason): void;
  /** Interval of the pings to a caller, which counts as gone if it doesn't answer for six intervals. Default 2000. */
  readonly keepaliveMs?: number;
  readonly clock?: Clock;
}

/** @throws StartError if the address is taken or malformed, or is not loopback while no token is configured. */
export async function serveRpc(options: RpcServerOptions): Promise<RpcServer> {
  const { log, graceMs = 2000, keepaliveMs = 2000, clock = systemClock } = options;
  const { connectionsLimit = 4_096, stallMs = 60_000, onRefused } = options;
  const names = options.services.map(({ descriptor }) => descriptor.typeName);
  const health = createHealth(names);
  const server = new Server({
    "grpc.max_receive_message_length": MESSAGE_LIMIT_BYTES,
    "grpc.max_send_message_length": MESSAGE_LIMIT_BYTES,
    // Of a connection that has shown no credentials yet: see door.ts.
    "grpc.max_concurrent_streams": STREAM_LIMITS.stranger,
    // Megabytes, as on the client's side: without a limit a peer that reads nothing fills this process.
    "grpc-node.max_session_memory": 1_000,
    "grpc.enable_channelz": 0,
    // The calls of a host that fell silent are cancelled, so that KV and slots are freed. This serves callers without
    // heartbeats; `watchCaller` watches the others.
    "grpc.keepalive_time_ms": keepaliveMs,
    "grpc.keepalive_timeout_ms": 6 * keepaliveMs,
  });
  const closing = new AbortController();
  setMaxListeners(0, closing.signal); // One per running watch.
  const gate = createGate(options);
  const logRefusal = refusalLog(log, clock);
  const identity = createIdentity({
    token: options.token,
    tls: options.tls,
    addresses: () => [options.advertise, listener.address],
    socketOf: (peer) => listener.connection(peer),
    onRefused: logRefusal,
  });
  const open = [health.service, identity.service];
  const reflection = reflectionServices([...names, ...open.map(({ descriptor }) => descriptor.typeName)]);
  const services = [...options.services, ...open, ...reflection];
  const access = new Map(
    services.flatMap((service) =>
      service.descriptor.methods.map((method) => [methodPath(service.descriptor, method), service.access]),
    ),
  );
  const door = createDoor({
    connectionsLimit,
    stallMs,
    guarded: Boolean(options.token) || options.tls !== undefined,
    clock,
    log,
    accessOf(path, { authorization, [SESSION_HEADER]: session }, peer) {
      const wanted = access.get(path) ?? "open";
      const proven = (): Proven => identity.proven(peer, session as string | undefined);
      return gate(wanted, authorization, proven) === undefined ? wanted : "open";
    },
    ...(onRefused === undefined ? {} : { onRefused }),
  });
  // grpc-js keeps its HTTP/2 server to itself, but makes it here.
  const makeHttp2 = server["createHttp2Server"].bind(server);
  server["createHttp2Server"] = (credentials: ServerCredentials) => {
    const http2Server = makeHttp2(credentials);
    door.guard(http2Server);
    return http2Server;
  };
  const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
  const listener = await listenTcp(options.listen, {
    tls: options.tls,
    trusted: Boolean(options.token) || options.tls !== undefined,
    onConnection: (socket) => door.admit(socket) && injector.injectConnection(socket),
    onHandshakeFailed: (peer) => logRefusal({ peer }, HANDSHAKE_FAILED),
  });
  if (options.tls === undefined && !isLoopbackHost(splitAddress(listener.address).host))
    log.warn("gRPC is served in clear beyond this machine: anyone who can read the network reads prompts and answers", {
      listen: listener.address,
      cure: "tls.cert, tls.key and tls.ca (tandem certs DIR makes them), or a private network",
    });
  const calls = new WeakMap();
  const shared = { gate, identity, logRefusal, log, clock, closing: closing.signal, listener, calls, door };
  for (const service of services) addService(server, service, shared);
  let closed: Promise<void> | undefined;
  return {
    address: listener.address,
    setServing: health.set,
    [Symbol.asyncDispose]() {
      closed ??= (async () => {
        health.set(false);
        closing.abort(new ServiceError("instance_unavailable", "The server is shutting down."));
        await shutDown(server, shared, graceMs);
      })();
      return closed;
    },
  };
}

interface Shared {
  readonly gate: Gate;
  readonly identity: Identity;
  readonly logRefusal: (call: Pick<RawCall, "peer">, error: ServiceError) => void;
  readonly log: Log;
  readonly clock: Clock;
  readonly closing: AbortSignal;
  readonly listener: Listener;
  /** The calls of each connection that have not ended. */
  readonly calls: WeakMap<Socket, Set<GrpcCall>>;
  readonly door: Door;
}

/** Longest message of a caller without credentials: the longest question is the name of a symbol. */
const OPEN_MESSAGE_BYTES = 64 * 1024;

const HANDSHAKE_FAILED = new ServiceError(
  "unauthenticated",
  "It did not complete the handshake of TLS: it speaks in clear, or does not trust this server's certificate.",
);
const REFUSAL_LOG_PAUSE_MS = 10_000;
/** A shorter interval would let a caller keep this process busy watching it. */
const SHORTEST_BEAT_MS = 100;

const asIs = (bytes: Buffer): Buffer => bytes;

function addService(server: Server, service: RpcService, shared: Shared): void {
  const { gate, identity, log, clock, closing, door } = shared;
  for (const method of service.descriptor.methods) {
    const path = methodPath(service.descriptor, method);
    const raw = service.raw[method.localName];
    const typed = service.typed[method.localName];
    const onBug = (thrown: unknown): void => log.error("call failed unexpectedly", { method: path, error: thrown });
    const handler =
      raw ??
      ((call: RawCall): void => {
        if (typed === undefined) call.fail(new ServiceError("method_not_allowed", `${path} is not served here.`));
        else serveTyped(method, typed, call, { clock, closing, onBug });
      });
    const accept = (stream: ServerDuplexStream<Buffer, Buffer>): void => {
      const open = service.access === "open";
      if (open) limitMessages(stream, OPEN_MESSAGE_BYTES);
      const call = new GrpcCall(
        stream,
        log,
        clock,
        open ? { stallMs: STRANGER_STALL_MS, onStall: () => door.stalled(stream.getPeer()) } : undefined,
      );
      const refusal = gate(service.access, call.header("authorization"), () =>
        identity.proven(call.peer, call.header(SESSION_HEADER)),
      );
      if (refusal !== undefined) {
        shared.logRefusal(call, refusal);
        return call.run(() => call.fail(refusal));
      }
      const beatMs = Number(call.header(HEARTBEAT_HEADER));
      const socket = shared.listener.connection(stream.getPeer());
      if (socket !== undefined) {
        enrol(call, stream, socket, shared);
        if (beatMs >= SHORTEST_BEAT_MS && !open) watchCaller(stream, socket, beatMs, shared);
      }
      call.run(handler);
    };
    if (!server.register(path, accept, asIs, asIs, "bidi"))
      throw new Error(`${service.descriptor.typeName} is served twice.`);
  }
}

function enrol(call: GrpcCall, stream: ServerDuplexStream<Buffer, Buffer>, socket: Socket, { calls }: Shared): void {
  let known = calls.get(socket);
  if (known === undefined) calls.set(socket, (known = new Set()));
  known.add(call);
  stream.once("cancelled", () => known.delete(call)); // grpc-js emits it after every end of a call.
}

/** Heartbeats without which a caller is doubted. Half of one is added, so that it is never less than two seconds. */
const DOUBTED_BEATS = 4.5;
/** Heartbeats without which a caller counts as gone. */
const GONE_BEATS = 24;

/** Strangers may call as often as they like, so that not every refusal is logged. */
function refusalLog(log: Log, clock: Clock): Shared["logRefusal"] {
  let quietUntilMs = -Infinity;
  let more = 0;
  return ({ peer }, { message: because }) => {
    const nowMs = clock.nowMs();
    if (nowMs < quietUntilMs) return void more++;
    log.warn("a caller was refused", { peer, because, ...(more > 0 ? { moreSinceTheLast: more } : {}) });
    quietUntilMs = nowMs + REFUSAL_LOG_PAUSE_MS;
    more = 0;
  };
}

/**
 * Watches a caller that has promised heartbeats. After four intervals without a byte its calls are told, so that what
 * only waits for the caller can end: it may be gone. But it may as well be paused, as a router by a stopped virtual
 * machine, and answers that run would be lost: its connection is closed, with all its calls, only after twenty-four. The
 * watch ends when the call that carries the heartbeats ends, or when the caller half-closes it.
 */
function watchCaller(
  stream: ServerDuplexStream<Buffer, Buffer>,
  socket: Socket,
  beatMs: number,
  { clock, log, calls }: Shared,
): void {
  const method = stream.getPath();
  const stop = watchLiveness(
    {
      bytesRead: () => socket.bytesRead,
      ask() {},
      onSuspect(suspect) {
        if (!suspect) return log.info("a caller is heard again", { method });
        log.warn("a caller is silent; calls that wait for it end", { method, silenceMs: DOUBTED_BEATS * beatMs });
        for (const call of [...(calls.get(socket) ?? [])]) call.callerSilent();
      },
      onSilent() {
        log.warn("a caller is gone; its calls are cancelled", { method, silenceMs: GONE_BEATS * beatMs });
        socket.destroy();
      },
    },
    clock,
    { beatMs, suspectMs: DOUBTED_BEATS * beatMs, silenceMs: GONE_BEATS * beatMs },
  );
  stream.once("end", stop).once("cancelled", stop);
}

/** For one call, and lower than the server's limit: grpc-js has a setting for the whole server only. */
function limitMessages(stream: ServerDuplexStream<Buffer, Buffer>, limitBytes: number): void {
  const { decoder } = (stream as unknown as { call: { decoder: object } }).call;
  Object.assign(decoder, { maxReadMessageLength: limitBytes });
}

/** Ends within `graceMs`, and the moment it takes to close what is left, whatever the callers do. */
async function shutDown(server: Server, { listener, door, clock, log }: Shared, graceMs: number): Promise<void> {
  // After GOAWAY Node refuses to send a PING, which grpc-js takes for a broken connection: grpc-js would drop the very
  // calls that should end undisturbed. It reads this field before each PING. Seen in grpc-js 1.14.7 on Node 20.20.
  Object.assign(server, { keepaliveTimeMs: -1 });
  const closed = listener.close();
  // Says GOAWAY. Its end is not waited for: it never comes where a session was given up with unsent bytes, and it comes
  // too early from Node 24 on, where a closing server closes its sessions by itself. A session closes its connection
  // after its last call, so the end of the connections is what counts.
  server.tryShutdown(() => {});
  // Not forceShutdown, which misses the connections of a server without channelz.
  const timer = clock.setTimer(graceMs, () => {
    log.info("callers did not leave in time; their connections are closed", door.report());
    listener.dropConnections();
  });
  await stage("gRPC connections", closed);
  timer.cancel();
  door[Symbol.dispose]();
}
