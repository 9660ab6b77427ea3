// The REST side of a router over a real socket, with a scripted relay behind it.
import { systemClock } from "../../../../services/common/clock.ts";
import { Deadlines } from "../../../../services/common/deadlines.ts";
import { createMetrics, type Metrics } from "../../../../services/common/metrics.ts";
import { createAdmission } from "../../../../services/router/admission/admission.ts";
import { createReceipts, type Receipts } from "../../../../services/router/serving/receipts.ts";
import { createBodyBudget, type BodyBudget } from "../../../../services/router/rest/body-budget.ts";
import { restHandler } from "../../../../services/router/rest/app.ts";
import { hostChecks, type HostSettings } from "../../../../services/router/rest/host-check.ts";
import { createServing, type Serving } from "../../../../services/router/serving/serving.ts";
import { createServingMetrics } from "../../../../services/router/serving/metrics.ts";
import { serveHttp, type HttpServer } from "../../../../services/router/rest/server.ts";
import { logSink, type LogSink } from "../../../support/log-sink.ts";
import { fakePool, type FakePool } from "./pool.ts";
import { fakeRelay, type FakeRelay, type Script } from "./relay.ts";

export interface RestOptions {
  readonly script?: Script;
  readonly apiKey?: string;
  readonly bodyLimitBytes?: number;
  readonly bodyTotalBytes?: number;
  readonly bufferBytes?: number;
  readonly stallMs?: number;
  readonly headMs?: number;
  readonly bodyMs?: number;
  readonly queueLimit?: number;
  readonly queueTimeoutMs?: number;
  readonly legsLimit?: number;
  /** Default: every name will do. */
  readonly hosts?: Partial<HostSettings>;
  readonly strict?: boolean;
  /** Whether the registry is away. */
  readonly registryIsAway?: () => boolean;
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
  readonly bodyBudget: BodyBudget;
  /** POSTs JSON. */
  post(path: string, body: unknown, o?: { headers?: Record<string, string>; signal?: AbortSignal }): Promise<Response>;
  [Symbol.asyncDispose](): Promise<void>;
}

export async function startRest(o: RestOptions = {}): Promise<Rest> {
  const pool = fakePool();
  const relay = fakeRelay(o.script);
  const logs = logSink();
  const metrics = createMetrics();
  const admission = createAdmission({
    capacity: (model) => pool.view.models.get(model)?.slots ?? 0,
    queue: { current: { limit: o.queueLimit ?? 8, timeoutMs: o.queueTimeoutMs ?? 5_000 } },
    onRefused: (because) => servingMetrics.notAdmitted(because),
    clock: systemClock,
    deadlines: new Deadlines(systemClock),
  });
  pool.onChange(admission.poke);
  const receipts = createReceipts({ limit: 50, watcherLimit: 2 });
  const servingMetrics = createServingMetrics(metrics, admission);
  const serving = createServing({
    pool,
    admission,
    relay,
    receipts,
    metrics: servingMetrics,
    log: logs.log,
    clock: systemClock,
    request: { current: { legsLimit: o.legsLimit ?? 64, deadlineMs: 60_000, strict: o.strict ?? false } },
    ...(o.registryIsAway === undefined ? {} : { registryIsAway: o.registryIsAway }),
  });
  const bodyBudget = createBodyBudget(o.bodyTotalBytes ?? 100_000_000, () => servingMetrics.notAdmitted("body_memory"));
  const http = await serveHttp(
    "127.0.0.1:0",
    restHandler({
      serving,
      pool,
      metrics,
      servingMetrics,
      log: logs.log,
      apiKey: o.apiKey ?? "",
      bodyLimitBytes: o.bodyLimitBytes ?? 1_000_000,
      bodyBudget,
      bufferBytes: o.bufferBytes ?? 65_536,
      stallMs: o.stallMs ?? 5_000,
      routerService: (_req, _res, next) => next(),
      grpcAddress: "127.0.0.1:3001",
      checkHost: hostChecks({
        listen: o.hosts === undefined ? "0.0.0.0:0" : "127.0.0.1:0",
        advertise: undefined,
        hosts: [],
        apiKey: "",
        token: "",
        ...o.hosts,
      }),
    }),
    {
      connectionsLimit: 100,
      headTimeoutMs: o.headMs ?? 5_000,
      bodyTimeoutMs: o.bodyMs ?? 10_000,
      stallMs: o.stallMs ?? 5_000,
    },
  );
  const url = `http://${http.address}`;
  return {
    url,
    pool,
    relay,
    receipts,
    serving,
    logs,
    metrics,
    http,
    bodyBudget,
    port: Number(http.address.split(":").at(-1)),
    post: (path, body, { headers = {}, signal } = {}) =>
      fetch(`${url}${path}`, {
        method: "POST",
        headers: { "content-type": "application/json", ...headers },
        body: typeof body === "string" ? body : JSON.stringify(body),
        ...(signal === undefined ? {} : { signal }),
      }),
    [Symbol.asyncDispose]: () => http[Symbol.asyncDispose](),
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
