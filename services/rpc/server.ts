// Serves gRPC with @grpc/grpc-js: the given services, grpc.health.v1 and reflection.
import { setMaxListeners } from "node:events";
import { Server, ServerCredentials, type ServerDuplexStream, logVerbosity, setLogVerbosity } from "@grpc/grpc-js";
import { ServiceError } from "../common/errors.ts";
import type { Log } from "../common/log.ts";
import { type Gate, createGate } from "./access.ts";
import { GrpcCall } from "./grpc-call.ts";
import { createHealth } from "./health.ts";
import { reflectionServices } from "./reflection.ts";
import { type RawCall, type RpcService, methodPath } from "./service.ts";
import { serveTyped } from "./typed-call.ts";

/** Longest message that is taken or sent, in bytes. gRPC's own default of 4 MiB is too short for long prompts. */
export const MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024;

export interface RpcServer {
  /** host:port really bound. */
  readonly address: string;
  /** What grpc.health.v1 says of "" and of every service. A new server is not serving until it is told. */
  setServing(serving: boolean): void;
  /** Stops accepting, lets running calls end for `graceMs`, then breaks them. May be called twice. */
  [Symbol.asyncDispose](): Promise<void>;
}

export interface RpcServerOptions {
  /** host:port; port 0 takes a free one. */
  readonly listen: string;
  readonly services: readonly RpcService[];
  readonly token?: string | undefined;
  readonly apiKey?: string | undefined;
  readonly log: Log;
  /** Default 2000. */
  readonly graceMs?: number;
}

/** @throws Error when the address is taken or malformed, or is not loopback while no token is configured. */
export async function serveRpc(options: RpcServerOptions): Promise<RpcServer> {
  const { listen, log, graceMs = 2000 } = options;
  const host = hostOf(listen);
  if (!isLoopback(host) && !options.token) {
    throw new Error(`Refusing to listen on ${listen} without a join token: anyone who reaches it could use the engines. ` +
      "Set TANDEM_TOKEN, or listen on 127.0.0.1.");
  }
  const names = options.services.map(({ descriptor }) => descriptor.typeName);
  const health = createHealth(names);
  const services = [...options.services, health.service, ...reflectionServices([...names, health.service.descriptor.typeName])];

  // What grpc-js would print on its own, such as a taken port, is thrown or logged here instead.
  setLogVerbosity(logVerbosity.NONE);
  const server = new Server({
    "grpc.max_receive_message_length": MESSAGE_LIMIT_BYTES,
    "grpc.max_send_message_length": MESSAGE_LIMIT_BYTES,
    "grpc.max_concurrent_streams": 65_536,
    "grpc.enable_channelz": 0,
    // A caller whose host fell silent: its calls are cancelled within 4 s, so that KV and slots come free.
    "grpc.keepalive_time_ms": 2000,
    "grpc.keepalive_timeout_ms": 2000,
  });
  const closing = new AbortController();
  setMaxListeners(0, closing.signal); // One per running watch.
  const gate = createGate(options);
  for (const service of services) addService(server, service, { gate, log, closing: closing.signal });

  const port = await bind(server, listen);
  let closed: Promise<void> | undefined;
  return {
    address: `${host.includes(":") ? `[${host}]` : host}:${port}`,
    setServing: health.set,
    [Symbol.asyncDispose]() {
      closed ??= (async () => {
        health.set(false);
        closing.abort(new ServiceError("instance_unavailable", "The server is shutting down."));
        await shutDown(server, graceMs);
      })();
      return closed;
    },
  };
}

interface CallOptions {
  readonly gate: Gate;
  readonly log: Log;
  readonly closing: AbortSignal;
}

const asIs = (bytes: Buffer): Buffer => bytes;

function addService(server: Server, service: RpcService, { gate, log, closing }: CallOptions): void {
  for (const method of service.descriptor.methods) {
    const path = methodPath(service.descriptor, method);
    const raw = service.raw[method.localName];
    const typed = service.typed[method.localName];
    const onBug = (thrown: unknown): void => log.error("call failed unexpectedly", { method: path, error: thrown });
    const handler =
      raw ??
      ((call: RawCall): void => {
        if (typed === undefined) call.fail(new ServiceError("method_not_allowed", `${path} is not served here.`));
        else serveTyped(method, typed, call, { closing, onBug });
      });
    const accept = (stream: ServerDuplexStream<Buffer, Buffer>): void => {
      const call = new GrpcCall(stream, log);
      const refusal = gate(service.access, call.header("authorization"));
      call.run(refusal === undefined ? handler : () => call.fail(refusal));
    };
    if (!server.register(path, accept, asIs, asIs, "bidi")) throw new Error(`${service.descriptor.typeName} is served twice.`);
  }
}

function bind(server: Server, listen: string): Promise<number> {
  return new Promise((resolve, reject) => {
    server.bindAsync(listen, ServerCredentials.createInsecure(), (cause, port) => {
      if (cause === null) return resolve(port);
      server.forceShutdown();
      const why = cause.message.includes("EADDRINUSE")
        ? `another process listens there. Stop it, or choose another address with --grpc.listen.`
        : `${cause.message}. Check --grpc.listen.`;
      reject(new Error(`Can't listen on ${listen}: ${why}`, { cause }));
    });
  });
}

function shutDown(server: Server, graceMs: number): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => server.forceShutdown(), graceMs);
    server.tryShutdown(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}

function hostOf(listen: string): string {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(listen);
  const host = match?.[1] ?? match?.[2];
  if (host === undefined || Number(match?.[3]) > 65_535) throw new Error(`"${listen}" is not an address: it should look like 127.0.0.1:3001.`);
  return host;
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);
}
