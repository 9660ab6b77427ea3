// The router process: wiring, top to bottom. Reading down is the start order; stopping goes the other way.
import { randomUUID } from "node:crypto";
import { systemClock } from "../common/clock.ts";
import { Deadlines } from "../common/deadlines.ts";
import { loadConfig, settingsOf, StartError } from "../common/config.ts";
import { ServiceError } from "../common/errors.ts";
import { anySignal, onceAborted, stopWithParent, untilSignal } from "../common/lifecycle.ts";
import { createLog, type Log } from "../common/log.ts";
import { measureEventLoop } from "../common/event-loop.ts";
import { createMetrics, type Metrics } from "../common/metrics.ts";
import { registryHub } from "../discovery/embedded.ts";
import { staticRegistry } from "../discovery/static.ts";
import { connectHandler } from "../rpc/connect-handler.ts";
import { serveRpc, type RpcServer } from "../rpc/server.ts";
import { createAdmission } from "./admission/admission.ts";
import { routerConfig, type RouterConfig } from "./config.ts";
import { relayLimits } from "./relay-limits.ts";
import { inferenceService } from "./control/inference-service.ts";
import { createReceipts } from "./control/receipts.ts";
import { routerService } from "./control/router-service.ts";
import { watchAll } from "./directories.ts";
import { createLiveSettings } from "./live-settings.ts";
import { provesByProbe, startProbes } from "./probe/schedule.ts";
import { BREAKER_LIMITS } from "./pool/breaker.ts";
import { createPool } from "./pool/pool.ts";
import { openRegistry, registryStatus } from "./registry.ts";
import { createRelay } from "./relay/relay.ts";
import { restHandler } from "./rest/app.ts";
import { createBodyBudget } from "./rest/body-budget.ts";
import { hostChecks } from "./rest/host-check.ts";
import { isLoopback, serveHttp, type HttpServer } from "./rest/server.ts";
import { createServing } from "./serving/serving.ts";
import { createServingMetrics } from "./serving/metrics.ts";
import { drainAndStop } from "./stop.ts";

/** What SIGINT, or the death of the parent, leaves to running requests. */
const QUICK_GRACE_MS = 500;
/** Requests have ended before gRPC is closed; this is for the last messages of watchers. */
const RPC_GRACE_MS = 300;

export interface Router {
  readonly restUrl: string;
  /** host:port */
  readonly grpcAddress: string;
  /** Takes no new request, gives the running ones `graceMs` to end, then ends them. Later calls wait for the first. */
  stop(graceMs: number): Promise<void>;
  /** `stop` with the configured grace. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** `tandem router`. @param argv Without node, script and command. */
export async function runRouter(argv: readonly string[]): Promise<void> {
  const config = loadConfig(routerConfig, { argv, env: process.env });
  if (config.print_config) {
    process.stdout.write(
      settingsOf(config)
        .map(({ key, value, origin }) => `${key} = ${value} (${origin})\n`)
        .join(""),
    );
    return;
  }
  const stop = anySignal(untilSignal("SIGINT", "SIGTERM"), stopWithParent());
  const router = await startRouter(config, { signal: stop });
  await onceAborted(stop);
  const graceMs = config["drain.grace_ms"];
  await router.stop(stop.reason === "SIGTERM" ? graceMs : Math.min(graceMs, QUICK_GRACE_MS));
}

/**
 * Resolves when REST and gRPC are listened on. Whether anything can be served is another question: /readyz.
 *
 * @param o.signal Gives up the start when it aborts.
 * @throws Error saying which address is taken, and by which flag to change it
 */
export async function startRouter(
  config: RouterConfig,
  o: { signal?: AbortSignal; log?: Log; metrics?: Metrics } = {},
): Promise<Router> {
  const log = o.log ?? createLog({ name: "router", level: config["log.level"] });
  const clock = systemClock;
  const routerId = `router-${randomUUID().slice(0, 8)}`;
  const { token, api_key: apiKey } = config;
  for (const { key, value, origin } of settingsOf(config)) log.debug("setting", { setting: key, value, origin });
  warnOfOpenDoors(config, log);

  const metrics = o.metrics ?? createMetrics();
  const pool = createPool({
    token,
    log,
    clock,
    metrics,
    limit: config["registry.limit"],
    breaker: { ...BREAKER_LIMITS, failureLimit: config["breaker.failures"] },
    connectTimeoutMs: config["connect.timeout_ms"],
    firstPrefillMs: config["fallback.first_prefill_ms"],
    aggregate: config["fallback.aggregated"],
    ...(config["pair.check"] ? { proves: provesByProbe } : {}),
  });
  const hub = registryHub({ limit: config["registry.limit"], routerId });
  const registry = await openRegistry(config, hub, { log, metrics });
  const relaying = relayLimits(config);
  const live = createLiveSettings(config, {
    log,
    metrics,
    onChange() {
      Object.assign(relaying, relayLimits(live.config));
      admission.poke();
    },
  });
  const deadlines = new Deadlines(clock);
  const relay = createRelay({
    deadlines,
    pool,
    policies: {
      get prefill() {
        return live.policies.prefill;
      },
      get decode() {
        return live.policies.decode;
      },
    },
    config: relaying,
    metrics,
    log,
    clock,
  });
  const probes = startProbes({ pool, prober: relay.prober, clock, metrics });
  const admission = createAdmission({
    deadlines,
    capacity: (model) => Math.min(pool.view.models.get(model)?.slots ?? 0, live.config["admission.limit"]),
    lack: (model) => pool.view.models.get(model)?.lack(config.strict),
    get queueLimit() {
      return live.config["queue.limit"];
    },
    get queueTimeoutMs() {
      return live.config["queue.timeout_ms"];
    },
    onRefused: (because) => servingMetrics.notAdmitted(because),
    clock,
  });
  pool.onChange(admission.poke);
  const receipts = createReceipts({ limit: config["receipts.limit"], watcherLimit: config["watchers.limit"] });
  const servingMetrics = createServingMetrics(metrics, admission);
  const serving = createServing({
    pool,
    admission,
    relay,
    receipts,
    metrics: servingMetrics,
    log,
    clock,
    get legsLimit() {
      return live.config["legs.limit"];
    },
    get deadlineMs() {
      return live.config["request.deadline_ms"];
    },
    strict: config.strict,
    registryIsAway: () => registry.health?.up === false,
  });
  const closing = new AbortController();
  const routerCalls = routerService({
    routerId,
    pool,
    probes,
    receipts,
    settings: () => live.settings,
    registry: () => registryStatus(registry, live),
    watcherLimit: config["watchers.limit"],
    clock,
    log,
  });
  const bufferBytes = config["stream.buffer_bytes"];
  const inference = inferenceService({
    serving,
    metrics: servingMetrics,
    bufferBytes,
    stallMs: config["client.stall_ms"],
    clock,
  });

  measureEventLoop(metrics, closing.signal);
  let rpc: RpcServer | undefined;
  let http: HttpServer | undefined;
  try {
    const services = [routerCalls, inference, ...(registry.kind === "embedded" ? [hub.service] : [])];
    rpc = await serveRpc({ listen: config["grpc.listen"], services, token, apiKey, log, graceMs: RPC_GRACE_MS }).catch(
      notListening,
    );
    http = await serveHttp(
      config["rest.listen"],
      restHandler({
        serving,
        pool,
        metrics,
        servingMetrics,
        log,
        apiKey,
        bodyLimitBytes: config["body.limit_bytes"],
        bodyBudget: createBodyBudget(config["body.total_bytes"], () => servingMetrics.notAdmitted("body_memory")),
        bufferBytes,
        stallMs: config["client.stall_ms"],
        routerService: connectHandler([routerCalls], { token, log, closing: closing.signal }),
        grpcAddress: rpc.address,
        checkHost: hostChecks(config),
      }),
      {
        connections: config["connections.limit"],
        headMs: config["head.timeout_ms"],
        bodyMs: config["body.timeout_ms"],
        stallMs: config["client.stall_ms"],
      },
    );
    if (o.signal?.aborted) throw new ServiceError("cancelled", "The start was given up.");
  } catch (error) {
    await rpc?.[Symbol.asyncDispose]();
    await http?.[Symbol.asyncDispose]();
    await relay[Symbol.asyncDispose]();
    await pool[Symbol.asyncDispose]();
    await registry[Symbol.asyncDispose]();
    deadlines[Symbol.dispose]();
    throw error;
  }
  closing.signal.addEventListener("abort", probes.stop);
  const directories = watchAll(
    [...registry.directories, staticRegistry(config.instances, { token, log })],
    pool.update,
  );
  registry.watchSettings(live.apply);
  rpc.setServing(true);
  const [restUrl, grpcAddress] = [`http://${http.address}`, rpc.address];
  const registration = registry.announce({ routerId, restAddress: http.address, grpcAddress }, () => ({
    serving: !serving.draining,
    text: serving.draining ? `draining: ${serving.count} requests still run` : "serving",
  }));
  log.info("router is listening", { rest: restUrl, grpc: grpcAddress, routerId });

  let stopped: Promise<void> | undefined;
  const parts = { serving, deadlines, relay, rpc, http, directories, registry, registration, pool, closing, log };
  const stop = (graceMs: number): Promise<void> => (stopped ??= drainAndStop(parts, graceMs));
  return {
    restUrl,
    grpcAddress,
    stop,
    [Symbol.asyncDispose]: () => stop(config["drain.grace_ms"]),
  };
}

// Its message says which address and what to do; a stack would only hide that.
function notListening(cause: unknown): never {
  throw new StartError((cause as Error).message, { cause });
}

function warnOfOpenDoors(config: RouterConfig, log: Log): void {
  if (config.api_key === "" && !isLoopback(config["rest.listen"])) {
    log.warn("REST is open beyond this machine, and no API key is set: anyone who reaches it can use the models", {
      listen: config["rest.listen"],
      cure: "--api-key",
    });
  }
}
