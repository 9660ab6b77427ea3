// HTTP to one engine, at its Unix socket or on loopback: node:http with kept connections.
// Measured (protocol/node-path.md 2c): 10 us per SSE event, against 14 with async iteration and 26 with fetch.
import { existsSync } from "node:fs";
import { Agent, request as httpRequest, type ClientRequest, type IncomingMessage } from "node:http";
import { connect, type Socket } from "node:net";
import { urlToHttpOptions } from "node:url";
import { type Clock, systemClock, type Timer } from "../common/clock.ts";

/** vLLM's server (uvicorn) closes a connection after 5 s of silence; ours must go first, or a request meets the close. */
const IDLE_MS = 4_000;
/** Until the next try to connect to a Unix socket whose queue is full. */
const FULL_QUEUE_MS = 5;

export interface EngineCallRequest {
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** JSON. */
  readonly body?: Buffer | undefined;
  /**
   * Whether the engine may safely get it twice. Then a request that fails on a kept connection, before any byte of an
   * answer, is sent once more on a fresh one. Never for a leg that pairs by request id: ids in flight must not repeat.
   */
  readonly repeatable?: boolean;
}

export interface EngineCallHandlers {
  onHead(status: number): void;
  onData(chunk: Buffer): void;
  /** Exactly once, and never after `abort`. Undefined only where the whole answer arrived. */
  onEnd(error: Error | undefined): void;
}

export interface EngineCall {
  /** Closes the connection, which makes vLLM stop. No handler is called from then on. */
  abort(): void;
  pause(): void;
  resume(): void;
}

export interface EngineAnswerBody {
  readonly status: number;
  readonly body: Buffer;
}

/** The path of a `unix:` URL; undefined for another one. */
export function socketPathOf(url: string): string | undefined {
  return /^unix:(?:\/\/)?(\/.+)$/.exec(url)?.[1];
}

/** Whether the engine can't have seen the request, because nothing listened on its port or socket. */
export function neverReached(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  return code === "ECONNREFUSED" || code === "ENOENT" || code === "EHOSTUNREACH" || code === "ENOTFOUND";
}

/** The request timed out without an answer: the engine is busy or stalled, but its process exists. */
export class EngineSilent extends Error {}

export class EngineHttp {
  /** http://host:port, without a slash, or unix:/path. Never to be shown to a client. */
  readonly origin: string;
  readonly #clock: Clock;
  // `timeout` bounds idle sockets only: it has no effect while a request runs, however long the engine computes. The
  // agent sets TCP_NODELAY by itself.
  readonly #agent = new Agent({ keepAlive: true, maxSockets: Infinity, maxFreeSockets: 64, timeout: IDLE_MS });
  readonly #target: { readonly socketPath: string } | { readonly hostname: string; readonly port: string };
  readonly #headers: Readonly<Record<string, string>>;
  #closed: Error | undefined;

  constructor(o: { readonly url: string; readonly apiKey?: string; readonly clock?: Clock }) {
    const socketPath = socketPathOf(o.url);
    if (socketPath === undefined) {
      const url = new URL(o.url);
      this.origin = url.origin;
      // Of an IPv6 address without its brackets.
      this.#target = { hostname: urlToHttpOptions(url).hostname!, port: url.port };
    } else {
      this.origin = o.url;
      this.#target = { socketPath };
    }
    this.#headers = o.apiKey ? { authorization: `Bearer ${o.apiKey}` } : {};
    this.#clock = o.clock ?? systemClock;
  }

  /** Whether new connections fail because its socket was removed: programs clean up folders for temporary files. */
  get isUnreachable(): boolean {
    return "socketPath" in this.#target && !existsSync(this.#target.socketPath);
  }

  open(call: EngineCallRequest, handlers: EngineCallHandlers): EngineCall {
    let request: ClientRequest | undefined;
    let response: IncomingMessage | undefined;
    let ended = false;
    let paused = false;
    const end = (error: Error | undefined): void => {
      if (ended) return;
      ended = true;
      handlers.onEnd(this.#closed ?? error);
    };
    const headers = { ...this.#headers, ...(call.body && { "content-type": "application/json" }), ...call.headers };
    const send = (again: boolean): void => {
      if (this.#closed !== undefined) return end(undefined);
      const { method, path } = call;
      const current = httpRequest({ ...this.#target, agent: this.#agent, method, path, headers });
      request = current;
      current.on("error", (error: NodeJS.ErrnoException) => {
        // The queue of a Unix socket is full, where a port would let the connection wait. Nothing was sent.
        if (error.code === "EAGAIN" && !response && !ended && this.#closed === undefined) {
          this.#clock.setTimer(FULL_QUEUE_MS, () => {
            if (!ended) send(again);
          });
          return;
        }
        const stale = current.reusedSocket && (error.code === "ECONNRESET" || error.code === "EPIPE");
        if (stale && !response && call.repeatable === true && !again && !ended && !this.#closed) send(true);
        else end(error);
      });
      current.on("response", (incoming) => {
        response = incoming;
        if (paused) incoming.pause();
        handlers.onHead(incoming.statusCode ?? 0);
        if (ended) return;
        incoming.on("data", handlers.onData);
        incoming.on("end", () => end(undefined));
        incoming.on("error", end);
        // A body that stops short of its length or last chunk closes without `end`.
        incoming.on("close", () => end(incoming.complete ? undefined : new Error("the engine broke off its answer")));
      });
      current.end(call.body);
    };
    if (this.#closed === undefined) send(false);
    else queueMicrotask(() => end(undefined));

    return {
      abort() {
        if (ended) return;
        ended = true;
        response?.removeListener("data", handlers.onData);
        request?.destroy();
      },
      pause() {
        paused = true;
        response?.pause();
      },
      resume() {
        paused = false;
        response?.resume();
      },
    };
  }

  /**
   * A call whose whole answer is wanted at once.
   *
   * @throws RangeError if the answer is larger than `limitBytes`; EngineSilent after `timeoutMs`; the signal's reason; or
   *   the socket's error.
   */
  async fetch(
    call: EngineCallRequest,
    o: { readonly timeoutMs?: number; readonly limitBytes?: number; readonly signal?: AbortSignal } = {},
  ): Promise<EngineAnswerBody> {
    const { timeoutMs, limitBytes = 64 * 1024 * 1024, signal } = o;
    signal?.throwIfAborted();
    const chunks: Buffer[] = [];
    let bytes = 0;
    let status = 0;
    let timer: Timer | undefined;
    let onAbort: (() => void) | undefined;
    try {
      return await new Promise((resolve, reject) => {
        const giveUp = (error: unknown): void => {
          running.abort();
          reject(error);
        };
        const running = this.open(call, {
          onHead: (code) => void (status = code),
          onData(chunk) {
            bytes += chunk.length;
            if (bytes > limitBytes) giveUp(new RangeError(`the engine's answer is larger than ${limitBytes} bytes`));
            else chunks.push(chunk);
          },
          onEnd: (error) => (error ? reject(error) : resolve({ status, body: Buffer.concat(chunks) })),
        });
        if (timeoutMs !== undefined) {
          const late = `the engine did not answer ${call.path} within ${timeoutMs} ms`;
          timer = this.#clock.setTimer(timeoutMs, () => giveUp(new EngineSilent(late)));
        }
        onAbort = () => giveUp(signal!.reason);
        signal?.addEventListener("abort", onAbort, { once: true });
      });
    } finally {
      timer?.cancel();
      if (onAbort !== undefined) signal?.removeEventListener("abort", onAbort);
    }
  }

  /** A connection of its own, on which nothing is asked. */
  connect(): Socket {
    if ("socketPath" in this.#target) return connect({ path: this.#target.socketPath });
    const { hostname: host, port } = this.#target;
    return connect({ host, port: port === "" ? 80 : Number(port) });
  }

  get(path: string, timeoutMs: number): Promise<EngineAnswerBody> {
    return this.fetch({ method: "GET", path, repeatable: true }, { timeoutMs });
  }

  /** Ends every call with `error`, and every later one. */
  close(error: Error): void {
    if (this.#closed !== undefined) return;
    this.#closed = error;
    // Also the sockets in use.
    this.#agent.destroy();
  }
}
