// What the tests of services/rpc share: a server with one raw method, a recorder of one call, a server in a process of
// its own that can be stopped, and an HTTP/2 server that breaks the rules on demand.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { type Http2Server, type ServerHttp2Stream, createServer } from "node:http2";
import type { AddressInfo, Socket } from "node:net";
import { fileURLToPath } from "node:url";
import { setImmediate } from "node:timers/promises";
import { Client, Metadata, type ServiceError as GrpcError, credentials } from "@grpc/grpc-js";
import { DecodeService } from "#gen/tandem/decode/v1/decode_pb.js";
import type { ServiceError } from "../../services/common/errors.ts";
import type { Log } from "../../services/common/log.ts";
import { fromStatus } from "../../services/rpc/errors-wire.ts";
import { type RpcServer, type RpcServerOptions, serveRpc } from "../../services/rpc/server.ts";
import { type RawCall, type RpcService, defineService } from "../../services/rpc/service.ts";
import { type ChannelOptions, type ChannelState, type RpcChannel, dialRpc } from "../../services/rpc/channel.ts";
import type { ThinCall } from "../../services/rpc/thin-call.ts";
import { silentLog } from "../support/log-sink.ts";
import { deferred, eventually, within } from "../support/waits.ts";

export const DECODE = "/tandem.decode.v1.DecodeService/Decode";

/** Decode with a handler of the test's in its place: the messages are any bytes. */
export function rawService(handler: (call: RawCall) => void, access: RpcService["access"] = "token"): RpcService {
  return defineService(DecodeService, {}, { access, raw: { decode: handler } });
}

export function serve(services: readonly RpcService[], options: Partial<RpcServerOptions> = {}): Promise<RpcServer> {
  return serveRpc({ listen: "127.0.0.1:0", log: silentLog, graceMs: 100, services, ...options });
}

export function serveRaw(
  handler: (call: RawCall) => void,
  options: Partial<RpcServerOptions> = {},
): Promise<RpcServer> {
  return serve([rawService(handler)], options);
}

export function dial(address: string, options: Partial<ChannelOptions> = {}): RpcChannel {
  return dialRpc(address, { log: silentLog, ...options });
}

/** A channel to a server that echoes, with a heartbeat. */
export function dialBeating(address: string, options: Partial<ChannelOptions> = {}): RpcChannel {
  const heartbeat = { method: DecodeService.method.decode, message: () => ({}) };
  return dialRpc(address, { log: silentLog, ...options, heartbeat });
}

/** Why it is down; else what it is. */
export const lossOf = (state: ChannelState): string => (state.kind === "down" ? state.because : state.kind);

export async function untilState(channel: RpcChannel, kind: RpcChannel["state"]["kind"]): Promise<void> {
  await eventually(`the channel is ${kind}`, () => channel.state.kind === kind);
}

export interface Recorded {
  readonly call: ThinCall;
  readonly messages: Buffer[];
  /** Until `onEnd`; undefined is success. */
  readonly ended: Promise<ServiceError | undefined>;
  /** Resolves when `count` messages are there. */
  received(count: number): Promise<void>;
  drained(): Promise<void>;
}

const open: { ends: number; afterEnd: number; path: string }[] = [];

/** Begins a call and writes down what happens to it. */
export function record(channel: RpcChannel, path = DECODE, options: { timeoutMs?: number; log?: Log } = {}): Recorded {
  const counts = { ends: 0, afterEnd: 0, path };
  open.push(counts);
  const messages: Buffer[] = [];
  const end = deferred<ServiceError | undefined>();
  let wanted: { count: number; resolve(): void } | undefined;
  let drain = deferred();
  let returned = false;
  const call = channel.open(
    path,
    {
      onMessage(message) {
        if (counts.ends > 0) counts.afterEnd++;
        messages.push(Buffer.from(message));
        if (wanted !== undefined && messages.length >= wanted.count) wanted.resolve();
      },
      onEnd(error) {
        assert.ok(returned, "onEnd came before open had returned");
        counts.ends++;
        end.resolve(error);
      },
      onDrain() {
        drain.resolve();
        drain = deferred();
      },
    },
    options,
  );
  returned = true;
  return {
    call,
    messages,
    ended: within(end.promise, `the end of ${path}`),
    received(count) {
      if (messages.length >= count) return Promise.resolve();
      const { promise, resolve } = deferred();
      wanted = { count, resolve };
      return within(promise, `message ${count} of ${path}`);
    },
    drained: () => within(drain.promise, "drain"),
  };
}

/** A unary call with an empty message and headers of the caller's own, as grpcurl makes it. */
export async function callWith(
  address: string,
  path: string,
  headers: Record<string, string>,
  ca?: Buffer,
): Promise<void> {
  const channel = ca === undefined ? credentials.createInsecure() : credentials.createSsl(ca);
  const client = new Client(address, channel, {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.ssl_target_name_override": "localhost",
  });
  const metadata = new Metadata();
  for (const [name, value] of Object.entries(headers)) metadata.set(name, value);
  const asIs = (bytes: Buffer): Buffer => bytes;
  const answer = deferred<GrpcError | null>();
  client.makeUnaryRequest(path, asIs, asIs, Buffer.alloc(0), metadata, answer.resolve);
  const error = await within(answer.promise, `the answer of ${path}`);
  client.close();
  if (error === null) return;
  throw fromStatus(error.code, error.details, error.metadata.get("grpc-status-details-bin")[0] as Buffer | undefined);
}

/** For an `afterEach` hook: every call recorded since the last time ended exactly once, with nothing after it. */
export async function eachEndedOnce(): Promise<void> {
  for (let turn = 0; turn < 5; turn++) await setImmediate(); // A second end would come in the turns after the first.
  for (const { ends, afterEnd, path } of open.splice(0)) {
    assert.equal(ends, 1, `${path} ended ${ends} times`);
    assert.equal(afterEnd, 0, `${path} got messages after its end`);
  }
}

export interface ChildServer {
  readonly address: string;
  signal(signal: NodeJS.Signals): void;
  [Symbol.asyncDispose](): Promise<void>;
}

/**
 * child-server.ts in a process of its own. `rpc` echoes each message and says GOAWAY on SIGTERM, `mute` accepts no
 * connection once it is stopped, `caller` opens a call to `address` and is ready at its first message, as is `beating`,
 * which has a heartbeat besides.
 */
export async function startChild(kind: "rpc" | "mute" | "caller" | "beating", address = ""): Promise<ChildServer> {
  const script = fileURLToPath(new URL("child-server.ts", import.meta.url));
  const child = spawn(process.execPath, ["--import=tsx", script, kind, address], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const [line] = (await within(once(child.stdout, "data"), "the child's address", 15_000)) as [Buffer];
  return {
    address: line.toString().trim(),
    signal: (signal) => void child.kill(signal),
    async [Symbol.asyncDispose]() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exit = once(child, "exit");
      child.kill("SIGKILL");
      await exit;
    },
  };
}

export interface RogueServer {
  readonly address: string;
  readonly server: Http2Server;
  readonly sockets: Set<Socket>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** HTTP/2 without gRPC's rules. */
export async function startRogue(onStream: (stream: ServerHttp2Stream) => void): Promise<RogueServer> {
  const server = createServer();
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.once("close", () => sockets.delete(socket));
  });
  server.on("stream", (stream) => {
    stream.on("error", () => {});
    onStream(stream);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    server,
    sockets,
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

export const HELLO = Buffer.from("hello");

/** Disposing a channel ends its calls with `cancelled`; tests that leave a call open expect that. */
export const codeOf = (error: ServiceError | undefined): string => error?.code ?? "ok";

/** Sends back what comes, and ends when its caller does. */
export const echo = (call: RawCall): void => {
  call.onMessage = (message) => void call.write(message);
  call.onHalfClose = () => call.end();
};
