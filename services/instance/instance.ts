// One instance of either role: its gRPC server, its engine, its entry in the registry, and how they start and end.
// Shared by prefill and decode, which may not import one another; they add their service. This folder sits between
// them and kv, discovery, engine.
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import {
  FindingLevel,
  InfoSchema,
  Role,
  type Finding,
  type Info,
  type Load,
} from "#gen/tandem/instance/v1/instance_pb.js";
import { isLoopbackHost, joinAddress, splitAddress } from "../common/address.ts";
import { type Clock, settlesWithin, systemClock, until } from "../common/clock.ts";
import { ConfigError } from "../common/config.ts";
import { defaultEngineKind } from "../common/default-engine.ts";
import { anySignal, stage } from "../common/lifecycle.ts";
import { measureEventLoop } from "../common/event-loop.ts";
import type { Log } from "../common/log.ts";
import { stateDirOf } from "../common/state-dir.ts";
import { TANDEM_COMMIT, TANDEM_VERSION } from "../common/version.ts";
import { requireDialable } from "../discovery/consul-settings.ts";
import { registerAtRouter } from "../discovery/embedded.ts";
import { together, type Registration, type SelfReport } from "../discovery/registry.ts";
import { listenForPings, type PingListener } from "../discovery/vllm-pings.ts";
import { attachedEngine } from "../engine/attached.ts";
import type { EngineSource, LiveEngine } from "../engine/engine.ts";
import { socketPathOf } from "../engine/http.ts";
import { launcherOf } from "../engine/launch.ts";
import { spawnedEngine } from "../engine/spawned.ts";
import type { EngineWork } from "../engine/progress.ts";
import { EngineSupervisor } from "../engine/supervisor.ts";
import { ranksOf } from "../engine/vllm-command.ts";
import type { Connector, ConnectorName } from "../kv/connector.ts";
import { CONNECTORS } from "../kv/index.ts";
import { openTls, type Tls } from "../rpc/tls.ts";
import { serveRpc, type RpcServer } from "../rpc/server.ts";
import type { RpcService } from "../rpc/service.ts";
import type { InstanceConfig, InstanceRole } from "./config.ts";
import { engineFindings, startRefusalOf } from "./findings.ts";
import { instanceService } from "./instance-service.ts";
import { RestartLease } from "./restart-lease.ts";
import { InstanceStatus } from "./status.ts";

/** What a role's service works with. */
export interface InstanceParts {
  readonly connector: Connector;
  readonly status: InstanceStatus;
  readonly supervisor: EngineSupervisor;
  readonly restarts: RestartLease;
  readonly token: string;
  readonly tls: Tls | undefined;
  readonly log: Log;
  readonly clock: Clock;
}

export interface RoleService {
  readonly rpc: RpcService;
  /** An engine became available or was lost. */
  engineChanged?(live: LiveEngine | undefined): void;
  /** What the service knows of the engine's work beyond the counts of the status. */
  engineWork?(): Partial<EngineWork>;
  /** Ends every leg that still runs: the grace is over. */
  abortLegs(): void;
}

export interface RunningInstance {
  /** host:port that others dial. */
  readonly address: string;
  info(): Info;
  load(): Load;
  readonly supervisor: EngineSupervisor;
  /** Drains up to `graceMs`, then stops everything. May be called twice. */
  close(graceMs: number): Promise<void>;
  /** Without any grace, as a test wants it. */
  [Symbol.asyncDispose](): Promise<void>;
}

export interface StartOptions {
  /** Ends a start that has not succeeded. Afterwards the caller decides, with `close`. */
  readonly stop?: AbortSignal;
  readonly log: Log;
  readonly clock?: Clock;
}

/**
 * How long running legs may hold up a restart that was asked for. The instance takes no new ones meanwhile, so this only
 * bounds the wait, and costs no user an answer.
 */
const RETIRE_LIMIT_MS = 600_000;

/** Resolves when the engine works and legs are taken; on failure nothing is left behind. */
export async function startInstance(
  role: InstanceRole,
  config: InstanceConfig,
  makeService: (parts: InstanceParts) => RoleService,
  { stop, log, clock = systemClock }: StartOptions,
): Promise<RunningInstance> {
  const connector = CONNECTORS[connectorName(config)];
  const tls = openTls(config.tls, { log, clock });
  const loop = measureEventLoop();
  const status = new InstanceStatus(config.legs.slots, loop);
  const startedUnixMs = BigInt(Date.now());
  const instanceId = `${role}-${randomUUID()}`;
  const over = new AbortController();
  let pings: Promise<PingListener> | undefined;
  const readyInMs = (): number | undefined => supervisor.readyInMs;
  const onPhase = (phase: string): void => {
    log.info("engine loading", { phase });
    status.set({ engine: { reason: `the engine is starting: ${phase}`, readyInMs } });
  };
  // The engine's own pings, to this instance alone: they report its actual KV address.
  const openPings = (): Promise<PingListener> =>
    (pings ??= listenForPings({ listen: joinAddress(splitAddress(config.kv.listen).host, 0), log }));
  const waitUntil = (isSo: () => boolean, limitMs: number, gone?: AbortSignal): Promise<boolean> =>
    settlesWithin(clock, until(status, isSo, gone), limitMs);
  const supervisor = new EngineSupervisor({
    source: engineSource(role, config, connector, { log, clock }, onPhase, openPings),
    log,
    clock,
    // A decode engine is given its KV and computes no prompt.
    work: () => ({
      legs: status.waitingForEngine,
      promptTokens: role === "prefill" ? status.load().queuedTokens : 0,
      ...service.engineWork?.(),
    }),
    stallMs: config.legs.stallMs,
    kvWaitMs: role === "decode" ? connector.traits.firstTransferMs : 0,
    holdsKvPort: connector.traits.wedgedByPartner,
    stallsAddUp: role === "decode",
    emptied: (gone) => waitUntil(() => status.remaining === 0, RETIRE_LIMIT_MS, gone),
  });
  const restarts = new RestartLease({ status, supervisor, log, clock });

  let server: RpcServer | undefined;
  let registration: Registration | undefined;
  let live: LiveEngine | undefined;
  /** What is known of the last engine that worked: while the next one loads, the instance is still the same. */
  let facts: MessageInitShape<typeof InfoSchema> = {};
  let findings: readonly Finding[] = [];

  const info = (): Info =>
    create(InfoSchema, {
      ...facts,
      instanceId,
      role: role === "prefill" ? Role.PREFILL : Role.DECODE,
      connector: connector.traits.name,
      grpcAddress: config.grpc.advertise ?? server?.address ?? config.grpc.listen,
      tandemVersion: TANDEM_VERSION,
      tandemCommit: TANDEM_COMMIT,
      slotLimit: config.legs.slots,
      startedUnixMs,
      pid: process.pid,
    });

  const service = makeService({ connector, status, supervisor, restarts, token: config.grpc.token, tls, log, clock });

  function follow(): void {
    const { reason, gauges } = supervisor;
    const changed = supervisor.live !== live;
    live = supervisor.live;
    if (live !== undefined && changed) {
      const { kind: engine, version: engineVersion, ...rest } = live.facts;
      facts = { ...rest, engine, engineVersion, kvAddress: live.kvAddress };
      findings = engineFindings(role, config, connector, live);
      for (const { level, check, message, cure } of findings)
        if (level >= FindingLevel.WARNING) log.warn("doctor finding", { check, message, cure });
    }
    const unusable = live === undefined ? reason : startRefusalOf(findings);
    const kvAddress = live?.kvAddress ?? "";
    const retiring = live === undefined ? "" : reason;
    status.set({ engine: { reason: unusable, retiring, kvAddress, readyInMs, gauges } });
    if (!changed) return;
    service.engineChanged?.(live);
    if (live !== undefined) registration?.update();
  }

  let reported = status.report();
  status.on("change", () => {
    const now = status.report();
    if (now.serving === reported.serving && now.text === reported.text) return;
    reported = now;
    server?.setServing(now.serving, now.text);
    registration?.update();
  });

  let closing: Promise<void> | undefined;
  async function closeAll(graceMs: number): Promise<void> {
    // The state goes out first: routers watch it, and a leg they send meanwhile is refused, to be tried elsewhere. The
    // entry stays until the last leg ended, so that no router drops a connection that is in use.
    const endMs = clock.nowMs() + graceMs;
    status.set({ ending: "stopping" });
    // KV that is being settled may still be under way: a prefill engine that sends it to one that is gone waits
    // forever (P2P NCCL).
    if (graceMs > 0)
      await stage(
        "legs",
        waitUntil(() => status.remaining + status.orphans === 0, graceMs),
      );
    service.abortLegs();
    // An engine of our own dies with its KV; an attached one goes on, and others would find it full.
    if (!supervisor.ours) await waitUntil(() => status.orphans === 0, 1_000);
    if (registration !== undefined) await stage("the registration", registration[Symbol.asyncDispose]());
    over.abort(new Error("stopped"));
    // At least 1 s: an instance promises to be gone within 2 s of its grace.
    await stage("the engine", supervisor.stop(Math.max(1_000, Math.min(endMs - clock.nowMs(), 10_000))));
    await (await pings?.catch(() => undefined))?.[Symbol.asyncDispose]();
    status.set({ ending: "stopped" });
    await server?.[Symbol.asyncDispose]();
    tls?.[Symbol.dispose]();
    loop[Symbol.dispose]();
  }
  const close = (graceMs: number): Promise<void> => (closing ??= closeAll(graceMs));

  try {
    server = await serveRpc({
      listen: config.grpc.listen,
      advertise: config.grpc.advertise,
      services: [service.rpc, instanceService({ status, restarts, info, findings: () => findings, log, clock })],
      token: config.grpc.token,
      tls,
      log,
      clock,
      graceMs: 500,
    });
    await supervisor.start(anySignal(stop, over.signal));
    supervisor.onChange(follow);
    follow();
    registration = await register(config, tls, info, () => status.report(), log);
  } catch (error) {
    await close(0);
    throw error;
  }

  return {
    address: info().grpcAddress,
    info,
    load: () => status.load(),
    supervisor,
    close,
    [Symbol.asyncDispose]: () => close(0),
  };
}

/** Undefined if the instance doesn't register. @throws ConfigError for unusable Consul settings */
async function register(
  config: InstanceConfig,
  tls: Tls | undefined,
  self: () => Info,
  report: () => SelfReport,
  log: Log,
): Promise<Registration | undefined> {
  switch (config.registry.kind) {
    case "static":
      return undefined;
    case "embedded": {
      const addresses = [...new Set(config.registry.addresses)];
      const { token } = config.grpc;
      return together(addresses.map((address) => registerAtRouter(self, { address, token, tls, log })));
    }
    case "consul": {
      requireDialable("grpc", config.grpc);
      // Consul's code is loaded only if configured.
      const { instanceRecord, registerInConsul } = await import("../discovery/consul.ts");
      const deployment = config.deployment.name;
      const { token } = config.grpc;
      const o = { deployment, token, tls: tls !== undefined, log };
      return registerInConsul(config.consul, () => instanceRecord(self()), report, o);
    }
  }
}

function connectorName(config: InstanceConfig): ConnectorName {
  return (
    config.kv.connector ??
    (config.engine.kind !== "vllm" && (config.engine.attach === "" || config.engine.kind === "sim")
      ? "p2p-zmq"
      : "nixl")
  );
}

function engineSource(
  role: InstanceRole,
  config: InstanceConfig,
  connector: Connector,
  o: { readonly log: Log; readonly clock: Clock },
  onPhase: (phase: string) => void,
  pings: () => Promise<PingListener>,
): EngineSource {
  const { servesUnpaired, pairedId, wedgedByPartner, name } = connector.traits;
  const { attach: url, apiKey, flags, model, servedName, startTimeoutMs, restartCommand } = config.engine;
  const common = { model, servesUnpaired, startTimeoutMs, ...o };
  if (url !== "") {
    if (socketPathOf(url) === undefined && !(url.startsWith("http://") && URL.canParse(url)))
      throw new ConfigError(`engine.attach: ${url} is neither an http:// URL nor unix:/PATH of a socket.`);
    const kvAddress = pairedId ? config.engine.kvAddress : "";
    if (kvAddress === undefined) {
      throw new ConfigError(
        `With connector ${name}, an attached engine needs --engine.kv_address HOST:PORT: requests carry it.`,
      );
    }
    return attachedEngine({ ...common, url, apiKey, kind: config.engine.kind, kvAddress, restartCommand });
  }
  if (restartCommand !== "")
    throw new ConfigError("--engine.restart_command is for an attached engine. Tandem restarts its own by itself.");
  if (config.engine.kind === undefined && name !== "p2p-zmq")
    throw new ConfigError(`--connector ${name} needs --engine vllm with a --model, or --engine sim.`);
  const kind = config.engine.kind ?? defaultEngineKind(model);
  const { host: kvHost, port: kvPort } = splitAddress(config.kv.listen);
  if (kvPort === 0) throw new ConfigError("kv.listen: give a port of at least 1, which is the first one to try.");
  const { token } = config.grpc;
  if (kind !== "vllm" && token === "" && !isLoopbackHost(kvHost)) {
    throw new ConfigError(
      `kv.listen: other machines can reach ${kvHost}, and without a token the engine could not tell who sends it KV. Set --token (TANDEM_TOKEN), or listen on 127.0.0.1.`,
    );
  }
  const launch = { role, connector: name, model, slots: config.legs.slots, flags, token };
  return spawnedEngine({
    ...common,
    // A real model is what is loaded; the name it is served under follows from the flags.
    ...(kind === "sim" ? {} : { model: servedName }),
    kind,
    launch: launcherOf(kind, launch, { ...config.vllm, servedName, pings }),
    onPhase,
    secrets: [config.vllm.hfToken],
    kvHost,
    kvPort,
    kvPortSpan: kind === "vllm" ? ranksOf(flags) : 1,
    kvPortOnce: wedgedByPartner,
    publishesKvAddress: pairedId,
    advertisedKvHost: config.kv.advertise,
    recordsFolder: join(stateDirOf(config.process), "engines"),
  });
}
