// The TCP side of the server. grpc-js could listen by itself, but then prints a taken port instead of explaining it, and
// can't drop its connections.
import { isLoopbackHost } from "../common/loopback.ts";
import { StartError } from "../common/run-main.ts";
import { type Socket, createServer } from "node:net";

export interface Listener {
  /** host:port really bound. */
  readonly address: string;
  /** The connection from a peer, by its address and port as grpc-js writes them. */
  connection(peer: string): Socket | undefined;
  /** Accepts no more. Connections stay. */
  close(): void;
  dropConnections(): void;
  /** Resolves once no connection is left. */
  empty(): Promise<void>;
}

export interface ListenOptions {
  /** Whether callers must prove who they are; without that only loopback may be listened on. */
  readonly trusted: boolean;
  onConnection(socket: Socket): void;
}

/** @throws StartError that says what to change when `listen` is malformed, taken, or not loopback while not trusted. */
export function listenTcp(listen: string, { trusted, onConnection }: ListenOptions): Promise<Listener> {
  const { host, port } = parse(listen);
  if (!trusted && !isLoopbackHost(host)) {
    const reason = "without a join token anyone who reaches it could use the engines";
    return Promise.reject(
      new StartError(`Refusing to listen on ${listen}: ${reason}. Set TANDEM_TOKEN, or listen on 127.0.0.1.`),
    );
  }
  const sockets = new Map<string, Socket>();
  const waiting: (() => void)[] = [];
  const server = createServer({ noDelay: true }, (socket) => {
    const peer = `${socket.remoteAddress}:${socket.remotePort}`;
    sockets.set(peer, socket);
    socket.once("close", () => {
      sockets.delete(peer);
      if (sockets.size === 0) for (const resolve of waiting.splice(0)) resolve();
    });
    onConnection(socket);
  });
  return new Promise((resolve, reject) => {
    server.once("error", (cause: NodeJS.ErrnoException) => {
      const why =
        cause.code === "EADDRINUSE"
          ? "another process listens there. Stop it, or choose another address with --grpc.listen"
          : `${cause.message}. Check --grpc.listen`;
      reject(new StartError(`Can't listen on ${listen}: ${why}.`, { cause }));
    });
    server.listen({ host, port, backlog: 4096 }, () => {
      const bound = server.address();
      if (bound === null || typeof bound === "string") throw new Error("not a TCP address");
      resolve({
        address: `${host.includes(":") ? `[${host}]` : host}:${bound.port}`,
        connection: (peer) => sockets.get(peer),
        close: () => void server.close(),
        dropConnections: () => sockets.forEach((socket) => socket.destroy()),
        empty: () => (sockets.size === 0 ? Promise.resolve() : new Promise((emptied) => void waiting.push(emptied))),
      });
    });
  });
}

function parse(listen: string): { host: string; port: number } {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(listen);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || port > 65_535)
    throw new StartError(`"${listen}" is not an address: it should look like 127.0.0.1:3001.`);
  return { host, port };
}
