// The HTTP server under the REST API: listening, broken requests, and an end that loses nothing.
import { once } from "node:events";
import {
  createServer,
  STATUS_CODES,
  type IncomingMessage,
  type Server,
  type ServerOptions,
  type ServerResponse,
} from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import { joinAddress, splitAddress } from "../../common/address.ts";
import { settlesWithin, systemClock } from "../../common/clock.ts";
import { FAILURES, ServiceError } from "../../common/errors.ts";
import { stage } from "../../common/lifecycle.ts";
import { StartError } from "../../common/config.ts";
import type { Tls } from "../../rpc/tls.ts";
import type { RouterConfig } from "../config.ts";
import { writeError } from "./errors.ts";

/** Above the 60 s for which load balancers keep a connection, so that they close it and not we, under a request. */
const KEEP_ALIVE_MS = 65_000;
const BACKLOG = 4096;
/** Longest time after its timeout until an incomplete request is cut. */
const SWEEP_MS = 2_000;
/** For answers that are complete but not sent yet when the server ends. */
const LAST_BYTES_MS = 200;

/** Requests that may wait on a connection for the answer to the one before them. A further one closes the connection. */
const PIPELINE_LIMIT = 100;

export interface HttpServer extends AsyncDisposable {
  /** host:port really bound. */
  readonly address: string;
  readonly url: string;
  /** Closes connections on which nothing runs. */
  closeIdle(): void;
  /** Takes no new connection, lets the last answers out, then breaks what is left. May be called twice. */
  [Symbol.asyncDispose](): Promise<void>;
}

export type HttpSettings = Pick<
  RouterConfig["rest"],
  "listen" | "connectionsLimit" | "headTimeoutMs" | "bodyTimeoutMs" | "stallMs"
>;

/** @throws StartError when the address can't be listened on */
export async function serveHttp(
  { listen, connectionsLimit, headTimeoutMs: headMs, bodyTimeoutMs: bodyMs, stallMs }: HttpSettings,
  handler: (req: IncomingMessage, res: ServerResponse) => void,
  tls?: Tls,
): Promise<HttpServer> {
  const server = makeServer(tls, {
    noDelay: true,
    keepAliveTimeout: KEEP_ALIVE_MS,
    requestTimeout: bodyMs,
    // Answered below, as every other error is.
    requireHostHeader: false,
    headersTimeout: Math.min(headMs, bodyMs),
    // How late the two may come.
    connectionsCheckingInterval: Math.max(20, Math.min(headMs, bodyMs, SWEEP_MS * 10) / 10),
  });
  server.maxConnections = connectionsLimit;
  const serve = oneATime(serveNow);
  server.on("request", serve);
  // A body that was announced too large is refused by the handler before the client sends it.
  server.on("checkContinue", (req, res) => {
    req.once("resume", () => {
      if (!res.headersSent) res.writeContinue();
    });
    serve(req, res);
  });
  // Other expectations don't concern the router and may be ignored (RFC 9110, 10.1.1).
  server.on("checkExpectation", serve);
  server.on("clientError", refuseBroken);
  server.on("timeout", cutUnlessQuiet);

  function serveNow(req: IncomingMessage, res: ServerResponse): void {
    // Whatever it is, an error or a page too: from its end on, only the client's reading is waited for. Once all is
    // sent, Node replaces this timeout by the keep-alive one.
    res.once("prefinish", () => res.socket?.setTimeout(stallMs));
    if (req.headers.host === undefined && req.httpVersion === "1.1") {
      writeError(res, new ServiceError("invalid_request", "The request has no Host header, which HTTP/1.1 requires."));
    } else handler(req, res);
  }

  const { host, port } = splitAddress(listen);
  server.listen({ host, port, backlog: BACKLOG });
  await once(server, "listening").catch((cause: NodeJS.ErrnoException) => {
    throw startError(listen, cause);
  });
  const bound = server.address() as AddressInfo;
  const closed = once(server, "close");
  let done: Promise<void> | undefined;

  async function close(): Promise<void> {
    server.close();
    const untilMs = systemClock.nowMs() + LAST_BYTES_MS;
    // A connection counts as idle only once its last byte is out, and no event reports that.
    while (systemClock.nowMs() < untilMs && !(await settlesWithin(systemClock, closed, 10)))
      server.closeIdleConnections();
    server.closeAllConnections();
    await stage("REST connections", closed);
  }

  const address = joinAddress(host, bound.port);
  return {
    address,
    url: `${tls === undefined ? "http" : "https"}://${address}`,
    closeIdle: () => server.closeIdleConnections(),
    [Symbol.asyncDispose]: () => (done ??= close()),
  };
}

type Serve = (req: IncomingMessage, res: ServerResponse) => void;

/**
 * Serves the requests of a connection one after the other, each in a turn of its own: Node would begin thousands that
 * came in one packet at once, and all other connections would wait.
 */
function oneATime(serve: Serve): Serve {
  /** By connection, what waits behind the request that is served now. */
  const busy = new WeakMap<Socket, [IncomingMessage, ServerResponse][]>();
  return (req, res) => {
    const { socket } = req;
    const waiting = busy.get(socket);
    if (waiting === undefined) start(req, res);
    else if (waiting.length < PIPELINE_LIMIT) waiting.push([req, res]);
    else socket.destroy();
  };

  function start(req: IncomingMessage, res: ServerResponse): void {
    const { socket } = req;
    if (!busy.has(socket)) busy.set(socket, []);
    res.once("close", () => {
      const waiting = busy.get(socket)!;
      const next = waiting.shift();
      if (next === undefined) busy.delete(socket);
      else if (!socket.destroyed) setImmediate(start, ...next);
    });
    serve(req, res);
  }
}

/** Clients need no certificate: the API key says who they are. */
function makeServer(tls: Tls | undefined, options: ServerOptions): Server {
  if (tls === undefined) return createServer(options);
  const server = createTlsServer({ ...options, ...tls.pems });
  server.once(
    "close",
    tls.onChange(() => server.setSecureContext(tls.pems)),
  );
  return server;
}

/** An answer may be quiet for as long as its engine thinks, also one that was asked for before the last one was read. */
function cutUnlessQuiet(socket: Socket): void {
  const answer = answeredOn(socket);
  if (answer?.writableEnded === false && socket.writableLength === 0 && answer.writableLength === 0) return;
  socket.destroy();
}

function answeredOn(socket: Socket): ServerResponse | undefined {
  return (socket as Socket & { _httpMessage?: ServerResponse | null })._httpMessage ?? undefined;
}

const BROKEN: Readonly<Record<string, readonly [status: number, message: string]>> = {
  HPE_HEADER_OVERFLOW: [431, "The headers are too large."],
  ERR_HTTP_REQUEST_TIMEOUT: [408, "The request took too long to arrive."],
};

/** What Node's parser gave up on. Nothing of the request is known, so the answer is written by hand. */
function refuseBroken(error: NodeJS.ErrnoException, socket: Socket): void {
  if (!socket.writable || error.code === "ECONNRESET" || answeredOn(socket)?.headersSent === true) {
    socket.destroy();
    return;
  }
  const [code, message] = BROKEN[error.code ?? ""] ?? [400, "This is not an HTTP/1.1 request."];
  const body = JSON.stringify({ error: { message, type: FAILURES.invalid_request.type, param: null, code } });
  socket.end(
    `HTTP/1.1 ${code} ${STATUS_CODES[code]}\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
  );
}

function startError(listen: string, cause: NodeJS.ErrnoException): StartError {
  const why =
    cause.code === "EADDRINUSE"
      ? "another process listens there. Stop it, or choose another port with --port"
      : cause.code === "EACCES"
        ? "that needs more rights. Choose a port above 1023 with --port"
        : `${cause.message}. Check --rest.listen`;
  return new StartError(`Can't listen on ${listen} for REST: ${why}.`, { cause });
}
