// The TCP side of the server. grpc-js could listen by itself, but only prints the error for a taken port, and can't
// drop its connections.
import { once } from "node:events";
import { type AddressInfo, type Socket, createServer } from "node:net";
import { ADDRESS, isLoopbackHost, joinAddress, splitAddress } from "../common/address.ts";
import { StartError } from "../common/run-main.ts";

export interface Listener {
  /** The bound host:port. */
  readonly address: string;
  /** The connection from a peer, by its address and port as grpc-js writes them. */
  connection(peer: string): Socket | undefined;
  /** Accepts no more connections. Resolves once the existing ones are closed, which stay open until then. */
  close(): Promise<void>;
  dropConnections(): void;
}

export interface ListenOptions {
  /** Whether callers must authenticate; otherwise the server may listen on loopback only. */
  readonly trusted: boolean;
  onConnection(socket: Socket): void;
}

/**
 * @throws StartError that says what to change, if `listen` is malformed, taken, or neither loopback nor authenticated.
 */
export async function listenTcp(listen: string, { trusted, onConnection }: ListenOptions): Promise<Listener> {
  const { host, port } = splitAddress(listen);
  if (!ADDRESS.test(listen) || port > 65_535)
    throw new StartError(`"${listen}" is not an address. Expected host:port, such as 127.0.0.1:3001.`);
  if (!trusted && !isLoopbackHost(host)) {
    const reason = "without a join token any caller that reaches this address could use the engines";
    throw new StartError(`Refusing to listen on ${listen}: ${reason}. Set TANDEM_TOKEN, or listen on 127.0.0.1.`);
  }
  const sockets = new Map<string, Socket>();
  const server = createServer({ noDelay: true }, (socket) => {
    const peer = `${socket.remoteAddress}:${socket.remotePort}`;
    sockets.set(peer, socket);
    socket.once("close", () => sockets.delete(peer));
    onConnection(socket);
  });
  server.listen({ host, port, backlog: 4096 });
  await once(server, "listening").catch((cause: NodeJS.ErrnoException) => {
    const why =
      cause.code === "EADDRINUSE"
        ? "another process listens there. Stop that process, or choose another address with --grpc.listen"
        : `${cause.message}. Check --grpc.listen`;
    throw new StartError(`Can't listen on ${listen}: ${why}.`, { cause });
  });
  server.on("error", () => {}); // A connection that can't be accepted, for want of a file descriptor: the others go on.
  return {
    address: joinAddress(host, (server.address() as AddressInfo).port),
    connection: (peer) => sockets.get(peer),
    close: () => new Promise((resolve) => server.close(() => resolve())),
    dropConnections: () => sockets.forEach((socket) => socket.destroy()),
  };
}
