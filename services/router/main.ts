// The life of the router process: its parts start from top to bottom, and end in reverse order.
import { randomUUID } from "node:crypto";
import { systemClock } from "../common/clock.ts";
import { loadConfig, settingLines } from "../common/config.ts";
import { Deadlines } from "../common/deadlines.ts";
import { ServiceError } from "../common/errors.ts";
import { measureEventLoop } from "../common/event-loop.ts";
import {
  DRAINS,
  anySignal,
  mustEndWithin,
  onceAborted,
  stage,
  startLife,
  stopWithParent,
  untilSignal,
} from "../common/lifecycle.ts";
import { createLog, type Log } from "../common/log.ts";
import { createMetrics, type Metrics } from "../common/metrics.ts";
import { watchOpenFiles } from "../common/open-files.ts";
import { startWatchdog } from "../common/watchdog.ts";
import { connectHandler } from "../rpc/connect-handler.ts";
import { openTls } from "../rpc/tls.ts";
import { serveRpc } from "../rpc/server.ts";
import { routerConfig, type RouterConfig } from "./config.ts";
import { watchOverload } from "./admission/overload.ts";
import { inferenceService } from "./control/inference-service.ts";
import { routerService } from "./control/router-service.ts";
import { FIRST_PREFILL_MS } from "./pool/first-prefill.ts";
import { createPool } from "./pool/pool.ts";
import { provesByProbe, startProbes } from "./probe/schedule.ts";
import { watchAll } from "./registry/directories.ts";
import { liveSettings } from "./registry/live-settings.ts";
import { openRegistry } from "./registry/router-registry.ts";
import { createRelay, type RelayOptions } from "./relay/relay.ts";
import { restHandler } from "./rest/app.ts";
import { serveHttp } from "./rest/server.ts";
import { createServing } from "./serving/serving.ts";

/** Time that running requests get after SIGINT or the death of the parent. */
const QUICK_GRACE_MS = 500;
/** Time for the last messages to watchers. Requests have ended before gRPC is closed. */
const RPC_GRACE_MS = 300;

export interface Router extends AsyncDisposable {
  readonly restUrl: string;
  /** host:port */
  readonly grpcAddress: string;
  /**
   * Takes no new request, gives the running ones `graceMs` to end, then ends them. Later calls wait for the first.
   * Disposing the router stops it with the configured grace.
   */
  stop(graceMs: number): Promise<void>;
}

export interface RouterOptions {
  /** Cancels the start when it aborts. */
  readonly signal?: AbortSignal;
  readonly log?: Log;
  readonly metrics?: Metrics;
  /** Constants that tests replace. */
  readonly constants?: RelayOptions["constants"] & { readonly firstPrefillMs?: number };
}

type Addresses = Pick<Router, "restUrl" | "grpcAddress">;

/** `tandem router`. @param argv Without node, script and command. */
export async function runRouter(argv: readonly string[]): Promise<void> {
  const config = loadConfig(routerConfig, { argv, env: process.env });
  const stop = anySignal(untilSignal("SIGINT", "SIGTERM", "SIGHUP"), stopWithParent());
  startWatchdog("router", config.process.memoryLimitMib);
  const log = createLog({ name: "router", level: config.process.logLevel });
  const router = await startRouter(config, { signal: stop, log });
  await onceAborted(stop);
  const drainMs = config.process.drainGraceMs;
  const graceMs = DRAINS.has(stop.reason) ? drainMs : Math.min(drainMs, QUICK_GRACE_MS);
  mustEndWithin(graceMs, (found) => log.error("the router did not stop in time; it exits", found));
  await router.stop(graceMs);
}

/**
 * Resolves when REST and gRPC listen. /readyz answers whether any model can be served.
 *
 * @throws StartError that names the address that is taken, and the flag that changes it
 */
export async function startRouter(config: RouterConfig, o: RouterOptions = {}): Promise<Router> {
  const log = o.log ?? createLog({ name: "router", level: config.process.logLevel });
  const { parts, stop } = await startLife<Addresses>(async (running) => {
    await life(config, { ...o, log }, running);
    log.info("router has stopped");
  });
  return { ...parts, stop, [Symbol.asyncDispose]: () => stop(config.process.drainGraceMs) };
}

async function life(
  config: RouterConfig,
  { log, signal, metrics = createMetrics(), constants = {} }: RouterOptions & { readonly log: Log },
  running: (addresses: Addresses) => Promise<number>,
): Promise<void> {
  const clock = systemClock;
  const routerId = `router-${randomUUID().slice(0, 8)}`;
  const { access, placement, queue, request, relay: limits, rest, settings } = config;
  const { token, apiKey } = access;
  log.info("settings", { settings: settingLines(settings.all) });

  using tls = openTls(config.tls, { log, clock });
  using deadlines = new Deadlines(clock);
  using loop = measureEventLoop(metrics);
  using _files = watchOpenFiles({ log, metrics });
  await using registry = await openRegistry(config, { routerId, tls, log, metrics });
  await using pool = createPool({
    token,
    tls,
    log,
    clock,
    metrics,
    connectTimeoutMs: config.registry.connectTimeoutMs,
    firstPrefillMs: constants.firstPrefillMs ?? FIRST_PREFILL_MS,
    unpaired: placement.current.unpaired,
    ...(config.registry.checkPairs ? { proves: provesByProbe } : {}),
  });
  const overload = watchOverload({ loop, pool, metrics });
  const isCalm = (): boolean => !overload.on && serving.waiting === 0;
  await using relay = createRelay({
    pool,
    placement,
    limits,
    deadlines,
    overload,
    constants,
    metrics,
    log,
    clock,
    loop,
    isCalm,
  });
  using probes = startProbes({ pool, prober: relay.prober, clock, metrics, overload });
  const registryIsAway = (): boolean => registry.status.up === false;
  const serving = createServing({
    pool,
    relay,
    queue,
    request,
    overload,
    registryIsAway,
    metrics,
    log,
    clock,
    deadlines,
  });
  const { receipts } = serving;

  const routerCalls = routerService({ routerId, pool, probes, receipts, settings, registry, clock, log });
  const services = [routerCalls, inferenceService({ ...rest, serving, clock }), ...registry.services];
  const turnedAway = metrics.counter(
    "tandem_grpc_turned_away_total",
    "Connections of gRPC callers that were closed, and calls that were refused, for want of room or patience.",
    ["reason"],
  );
  await using rpc = await serveRpc({
    ...config.grpc,
    services,
    token,
    apiKey,
    tls,
    log,
    graceMs: RPC_GRACE_MS,
    stallMs: rest.stallMs,
    onRefused: (reason) => turnedAway.inc({ reason }),
  });
  const grpcAddress = rpc.address;
  /** Ends calls of RouterService over HTTP/1.1 that would not end by themselves. */
  const closing = new AbortController();
  const overHttp = connectHandler([routerCalls], { token, log, closing: closing.signal });
  const restTls = rest.tls ? tls : undefined;
  const handler = restHandler({
    ...rest,
    ...access,
    inClear: restTls === undefined,
    serving,
    pool,
    routerService: overHttp,
    grpcAddress,
    metrics,
    log,
  });
  await using http = await serveHttp(rest, handler, restTls);
  if (signal?.aborted) throw new ServiceError("cancelled", "The start was cancelled.");

  await using _directories = watchAll(registry.directories, pool.update);
  registry.watchSettings(liveSettings(settings, { log, metrics, onChange: serving.poke }));
  rpc.setServing(true);
  await using registration = registry.announce({ restAddress: http.address, grpcAddress }, serving.standing);
  log.info("router is listening", { rest: http.url, grpc: grpcAddress, routerId });

  const graceMs = await running({ restUrl: http.url, grpcAddress });
  // New requests and /readyz get 503 on a port that stays open, so a load balancer sees the router leave before it is
  // gone.
  const drained = serving.drain(graceMs);
  rpc.setServing(false, "draining");
  registration?.update();
  http.closeIdle();
  await stage("running requests", drained);
  closing.abort(new ServiceError("instance_unavailable", "The server is stopping."));
}
