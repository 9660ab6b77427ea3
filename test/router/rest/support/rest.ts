// The REST side of a router over a real socket, with a scripted relay behind it.
import { subscribe, unsubscribe } from "node:diagnostics_channel";
import type { Socket } from "node:net";
import { type Clock, systemClock } from "../../../../services/common/clock.ts";
import { Deadlines } from "../../../../services/common/deadlines.ts";
import { createMetrics, type Metrics } from "../../../../services/common/metrics.ts";
import { restHandler } from "../../../../services/router/rest/app.ts";
import type { AccessSettings } from "../../../../services/router/rest/access.ts";
import { serveHttp, type HttpServer } from "../../../../services/router/rest/server.ts";
import type { Receipts } from "../../../../services/router/serving/receipts.ts";
import { createServing, type Serving } from "../../../../services/router/serving/serving.ts";
import { logSink, type LogSink } from "../../../support/log-sink.ts";
import { eventually } from "../../../support/waits.ts";
import { fakePool, type FakePool } from "./pool.ts";
import { answer, fakeRelay, type FakeRelay, type Script } from "./relay.ts";

export interface RestOptions {
  readonly script?: Script;
  readonly bodyLimitBytes?: number;
  readonly bodyTotalBytes?: number;
  readonly bufferBytes?: number;
  readonly stallMs?: number;
  readonly headMs?: number;
  readonly bodyMs?: number;
  readonly queueLimit?: number;
  readonly queueTimeoutMs?: number;
  readonly legsLimit?: number;
  readonly apiKey?: string;
  /** Default: every name will do. */
  readonly hosts?: Partial<AccessSettings>;
  readonly strict?: boolean;
  readonly registryIsAway?: () => boolean;
  /** Of requests, not of connections. */
  readonly clock?: Clock;
}

export interface Rest {
  readonly url: string;
  readonly port: number;
  readonly pool: FakePool;
  readonly relay: FakeRelay;
  readonly receipts: Receipts;
  readonly serving: Serving;
  readonly logs: LogSink;
  readonly metrics: Metrics;
  readonly http: HttpServer;
  /** Open connections, as the server sees them. */
  readonly connections: ReadonlySet<Socket>;
  /** POSTs JSON. */
  post(path: string, body: unknown, o?: { headers?: Record<string, string>; signal?: AbortSignal }): Promise<Response>;
  [Symbol.asyncDispose](): Promise<void>;
}

export async function startRest(o: RestOptions = {}): Promise<Rest> {
  const { clock = systemClock, stallMs = 5_000 } = o;
  const pool = fakePool();
  const relay = fakeRelay(o.script);
  const logs = logSink();
  const metrics = createMetrics();
  const shared = { pool, metrics, log: logs.log };
  const serving = createServing({
    ...shared,
    relay,
    queue: {
      current: { limit: o.queueLimit ?? 8, timeoutMs: o.queueTimeoutMs ?? 5_000, targetMs: 0, legsLimit: 4096 },
    },
    request: { current: { legsLimit: o.legsLimit ?? 64, deadlineMs: 60_000, strict: o.strict ?? false } },
    registryIsAway: o.registryIsAway ?? (() => false),
    clock,
    deadlines: new Deadlines(clock),
  });
  const handler = restHandler({
    ...shared,
    serving,
    bodyLimitBytes: o.bodyLimitBytes ?? 1_000_000,
    bodyTotalBytes: o.bodyTotalBytes ?? 100_000_000,
    bufferBytes: o.bufferBytes ?? 65_536,
    stallMs,
    routerService: (_req, _res, next) => next(),
    grpcAddress: "127.0.0.1:3001",
    listen: o.hosts === undefined ? "0.0.0.0:0" : "127.0.0.1:0",
    advertise: undefined,
    hosts: [],
    inClear: false,
    apiKey: o.apiKey ?? "",
    token: "",
    ...o.hosts,
  });
  const limits = {
    connectionsLimit: 100,
    headTimeoutMs: o.headMs ?? 5_000,
    bodyTimeoutMs: o.bodyMs ?? 10_000,
    stallMs,
  };
  const http = await serveHttp({ listen: "127.0.0.1:0", ...limits }, handler);
  const url = `http://${http.address}`;
  const port = Number(http.address.split(":").at(-1));
  const connections = new Set<Socket>();
  const onSocket = (message: unknown): void => {
    const { socket } = message as { socket: Socket };
    if (socket.localPort !== port) return;
    connections.add(socket);
    socket.once("close", () => connections.delete(socket));
  };
  subscribe("net.server.socket", onSocket);
  return {
    url,
    port,
    pool,
    relay,
    receipts: serving.receipts,
    serving,
    logs,
    metrics,
    http,
    connections,
    post: (path, body, { headers = {}, signal } = {}) =>
      fetch(`${url}${path}`, {
        method: "POST",
        headers: { "content-type": "application/json", ...headers },
        body: typeof body === "string" ? body : JSON.stringify(body),
        ...(signal === undefined ? {} : { signal }),
      }),
    async [Symbol.asyncDispose]() {
      unsubscribe("net.server.socket", onSocket);
      await http[Symbol.asyncDispose]();
    },
  };
}

export interface OpenAiError {
  readonly message: string;
  readonly type: string;
  readonly param: string | null;
  readonly code: unknown;
}

export async function errorOf(response: Response): Promise<OpenAiError> {
  return ((await response.json()) as { error: OpenAiError }).error;
}

/** Resolves once no body is held: only then does another one of `totalBytes`, the limit for all, fit. */
export async function untilNoBodyIsHeld(rest: Rest, totalBytes: number): Promise<void> {
  rest.relay.script = answer;
  const body = { prompt: "x".repeat(totalBytes - '{"prompt":""}'.length) };
  await eventually("no body is held", async () => (await rest.post("/v1/completions", body)).status === 200);
}
