// The TCP side of the server. grpc-js could listen by itself, but only prints the error for a taken port, and can't
// drop its connections.
import { once } from "node:events";
import { constants } from "node:crypto";
import { type AddressInfo, type Server, type Socket, createServer } from "node:net";
import { createServer as createTlsServer } from "node:tls";
import { ADDRESS, isLoopbackHost, joinAddress, splitAddress } from "../common/address.ts";
import { StartError } from "../common/run-main.ts";
import type { Tls } from "./tls.ts";

/** Time for a caller to finish the handshake. */
const HANDSHAKE_TIMEOUT_MS = 10_000;

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
  /** Serves TLS, and asks callers for a certificate. Whether one is needed is decided for each call. */
  readonly tls: Tls | undefined;
  /** Whether callers must authenticate; otherwise the server may listen on loopback only. */
  readonly trusted: boolean;
  onConnection(socket: Socket): void;
  /** A caller did not get through the handshake of TLS. */
  onHandshakeFailed(peer: string): void;
}

/**
 * @throws StartError that says what to change, if `listen` is malformed, taken, or neither loopback nor authenticated.
 */
export async function listenTcp(
  listen: string,
  { tls, trusted, onConnection, onHandshakeFailed }: ListenOptions,
): Promise<Listener> {
  const { host, port } = splitAddress(listen);
  if (!ADDRESS.test(listen) || port > 65_535)
    throw new StartError(`"${listen}" is not an address. Expected host:port, such as 127.0.0.1:3001.`);
  if (!trusted && !isLoopbackHost(host)) {
    const reason = "without a join token any caller that reaches this address could use the engines";
    throw new StartError(
      `Refusing to listen on ${listen}: ${reason}. Set TANDEM_TOKEN or tls.*, or listen on 127.0.0.1.`,
    );
  }
  const sockets = new Map<string, Socket>();
  const track = (socket: Socket): void => {
    const peer = `${socket.remoteAddress}:${socket.remotePort}`;
    // Over TLS the same peer is first a connection in clear, and after the handshake one that is not.
    sockets.set(peer, socket);
    socket.once("close", () => {
      if (sockets.get(peer) === socket) sockets.delete(peer);
    });
  };
  const accept = (socket: Socket): void => {
    track(socket);
    onConnection(socket);
  };
  const server = tls === undefined ? createServer({ noDelay: true }, accept) : serveTls(tls, track, accept);
  server.on("tlsClientError", (_error: Error, socket: Socket) => {
    const { remoteAddress, remotePort } = socket;
    // A caller that left in the middle has no address any more.
    if (remoteAddress !== undefined) onHandshakeFailed(`${remoteAddress}:${remotePort}`);
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

function serveTls(tls: Tls, onHandshake: (socket: Socket) => void, accept: (socket: Socket) => void): Server {
  const server = createTlsServer(
    {
      ...tls.pems,
      ALPNProtocols: ["h2"],
      requestCert: true,
      // Refused calls say why; a refused handshake can't.
      rejectUnauthorized: false,
      handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
      // A resumed session would skip the check of a certificate that has expired since.
      secureOptions: constants.SSL_OP_NO_TICKET,
      noDelay: true,
    },
    accept,
  );
  server.on("connection", onHandshake);
  server.once(
    "close",
    tls.onChange(() => server.setSecureContext(tls.pems)),
  );
  return server;
}
