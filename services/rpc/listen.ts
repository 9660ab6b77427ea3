// The TCP side of the server. grpc-js could listen by itself, but only prints the error for a taken port, and can't
// drop its connections.
import { isLoopbackHost } from "../common/address.ts";
import { StartError } from "../common/run-main.ts";
import { type Socket, createServer } from "node:net";

export interface Listener {
  /** The bound host:port. */
  readonly address: string;
  /** The connection from a peer, by its address and port as grpc-js writes them. */
  connection(peer: string): Socket | undefined;
  /** Accepts no more connections. Existing ones stay open. */
  close(): void;
  dropConnections(): void;
  /** Resolves once all connections are closed. */
  empty(): Promise<void>;
}

export interface ListenOptions {
  /** Whether callers must authenticate; otherwise the server may listen on loopback only. */
  readonly trusted: boolean;
  onConnection(socket: Socket): void;
}

/**
 * @throws StartError that says what to change, if `listen` is malformed, taken, or neither loopback nor authenticated.
 */
export function listenTcp(listen: string, { trusted, onConnection }: ListenOptions): Promise<Listener> {
  const { host, port } = parse(listen);
  if (!trusted && !isLoopbackHost(host)) {
    const reason = "without a join token any caller that reaches this address could use the engines";
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
          ? "another process listens there. Stop that process, or choose another address with --grpc.listen"
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
    throw new StartError(`"${listen}" is not an address. Expected host:port, such as 127.0.0.1:3001.`);
  return { host, port };
}
