// HTTP to one engine on loopback: node:http with kept connections.
// Measured (protocol/node-path.md 2c): 10 us per SSE event, against 14 with async iteration and 26 with fetch.
import {
  Agent,
  request as httpRequest,
  type ClientRequest,
  type IncomingHttpHeaders,
  type IncomingMessage,
} from "node:http";
import { type Clock, systemClock, type Timer } from "../common/clock.ts";

/** vLLM's server (uvicorn) closes a connection after 5 s of silence; ours must go first, or a request meets the close. */
const IDLE_MS = 4_000;

export interface EngineCallRequest {
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Buffer;
  /**
   * Whether the engine may safely get it twice. Then a request that fails on a kept connection, before any byte of an
   * answer, is sent once more on a fresh one. Never for a leg that pairs by request id: ids in flight must not repeat.
   */
  readonly repeatable?: boolean;
}

export interface EngineCallHandlers {
  onHead(status: number, headers: IncomingHttpHeaders): void;
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
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

export interface EngineHttp {
  /** http://host:port, without a slash. Never to be shown to a client. */
  readonly origin: string;
  open(request: EngineCallRequest, handlers: EngineCallHandlers): EngineCall;
  /**
   * A call whose whole answer is wanted at once.
   *
   * @throws RangeError if the answer is larger than `limitBytes`; the signal's reason; or the socket's error.
   */
  fetch(
    request: EngineCallRequest,
    o?: { readonly timeoutMs?: number; readonly limitBytes?: number; readonly signal?: AbortSignal },
  ): Promise<EngineAnswerBody>;
  /** Ends every call with `error`, and every later one. */
  close(error: Error): void;
}

/** Whether the engine can't have seen the request, because nothing listened on its port. */
export function neverReached(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  return code === "ECONNREFUSED" || code === "EHOSTUNREACH" || code === "ENOTFOUND";
}

/** The request timed out without an answer: the engine is busy or stalled, but its process exists. */
export class EngineSilent extends Error {}

export function createEngineHttp(o: {
  readonly url: string;
  readonly apiKey?: string;
  readonly clock?: Clock;
}): EngineHttp {
  const { clock = systemClock } = o;
  const url = new URL(o.url);
  const origin = url.origin;
  // `timeout` bounds idle sockets only: it has no effect while a request runs, however long the engine computes. The
  // agent sets TCP_NODELAY by itself.
  const agent = new Agent({ keepAlive: true, maxSockets: Infinity, maxFreeSockets: 64, timeout: IDLE_MS });
  const hostname = url.hostname.replace(/^\[|\]$/g, "");
  const port = url.port === "" ? 80 : Number(url.port);
  const base: Record<string, string> = o.apiKey ? { authorization: `Bearer ${o.apiKey}` } : {};
  const running = new Set<{ kill(error: Error): void }>();
  let closed: Error | undefined;

  function open(call: EngineCallRequest, handlers: EngineCallHandlers): EngineCall {
    let request: ClientRequest | undefined;
    let response: IncomingMessage | undefined;
    let ended = false;
    let paused = false;
    const entry = { kill: (error: Error) => (request === undefined ? end(error) : request.destroy(error)) };
    running.add(entry);

    function end(error: Error | undefined): void {
      if (ended) return;
      ended = true;
      running.delete(entry);
      handlers.onEnd(error);
    }

    function send(again: boolean): void {
      const headers: Record<string, string | number> = { ...base, ...call.headers };
      if (call.body !== undefined) {
        headers["content-type"] ??= "application/json";
        headers["content-length"] = call.body.length;
      }
      const current = httpRequest({ agent, hostname, port, method: call.method, path: call.path, headers });
      request = current;
      current.on("error", (error: NodeJS.ErrnoException) => {
        const stale = current.reusedSocket && (error.code === "ECONNRESET" || error.code === "EPIPE");
        if (stale && response === undefined && call.repeatable === true && !again && !ended && closed === undefined)
          send(true);
        else end(error);
      });
      current.on("response", (incoming) => {
        response = incoming;
        if (paused) incoming.pause();
        handlers.onHead(incoming.statusCode ?? 0, incoming.headers);
        if (ended) return;
        incoming.on("data", handlers.onData);
        incoming.on("end", () => end(undefined));
        incoming.on("error", end);
        // A body that stops short of its length or last chunk closes without `end`.
        incoming.on("close", () => end(incoming.complete ? undefined : new Error("the engine broke off its answer")));
      });
      current.end(call.body);
    }

    if (closed !== undefined) {
      const error = closed;
      queueMicrotask(() => end(error));
    } else send(false);

    return {
      abort() {
        if (ended) return;
        ended = true;
        running.delete(entry);
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

  return {
    origin,
    open,
    fetch(request, { timeoutMs, limitBytes = 64 * 1024 * 1024, signal } = {}) {
      return new Promise((resolve, reject) => {
        const chunks: Buffer[] = [];
        let bytes = 0;
        let status = 0;
        let headers: IncomingHttpHeaders = {};
        let timer: Timer | undefined;
        const settle = (then: () => void): void => {
          timer?.cancel();
          signal?.removeEventListener("abort", onAbort);
          then();
        };
        const giveUp = (error: Error): void => {
          call.abort();
          settle(() => reject(error));
        };
        const onAbort = (): void =>
          giveUp(signal!.reason instanceof Error ? signal!.reason : new Error(String(signal!.reason)));
        const call = open(request, {
          onHead(code, head) {
            status = code;
            headers = head;
          },
          onData(chunk) {
            bytes += chunk.length;
            if (bytes > limitBytes) giveUp(new RangeError(`the engine's answer is larger than ${limitBytes} bytes`));
            else chunks.push(chunk);
          },
          onEnd(error) {
            settle(() =>
              error === undefined ? resolve({ status, headers, body: Buffer.concat(chunks) }) : reject(error),
            );
          },
        });
        if (timeoutMs !== undefined) {
          timer = clock.setTimer(timeoutMs, () =>
            giveUp(new EngineSilent(`the engine did not answer ${request.path} within ${timeoutMs} ms`)),
          );
        }
        if (signal?.aborted === true) onAbort();
        else signal?.addEventListener("abort", onAbort, { once: true });
      });
    },
    close(error) {
      if (closed !== undefined) return;
      closed = error;
      for (const entry of [...running]) entry.kill(error);
      agent.destroy();
    },
  };
}
