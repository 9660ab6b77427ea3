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
  State,
  type Finding,
  type Info,
  type Load,
} from "#gen/tandem/instance/v1/instance_pb.js";
import { joinAddress, splitAddress } from "../common/address.ts";
import { type Clock, settlesWithin, systemClock } from "../common/clock.ts";
import { ConfigError } from "../common/config.ts";
import { defaultEngineKind } from "../common/default-engine.ts";
import { anySignal } from "../common/lifecycle.ts";
import { createLog, type Log } from "../common/log.ts";
import { stateDirOf } from "../common/state-dir.ts";
import { TANDEM_COMMIT, TANDEM_VERSION } from "../common/version.ts";
import type { Registration, SelfReport } from "../discovery/registry.ts";
import { listenForPings, type PingListener } from "../discovery/vllm-pings.ts";
import { attachedEngine } from "../engine/attached.ts";
import type { EngineKind, EngineSource, LiveEngine } from "../engine/engine.ts";
import { launcherOf } from "../engine/launch.ts";
import { spawnedEngine } from "../engine/spawned.ts";
import { EngineSupervisor } from "../engine/supervisor.ts";
import { ranksOf } from "../engine/vllm-command.ts";
import type { Connector, ConnectorName } from "../kv/connector.ts";
import { CONNECTORS } from "../kv/index.ts";
import { serveRpc, type RpcServer } from "../rpc/server.ts";
import type { RpcService } from "../rpc/service.ts";
import { createBoard, type Board } from "./board.ts";
import type { InstanceConfig, InstanceRole } from "./config.ts";
import { engineFindings, startRefusalOf } from "./findings.ts";
import { instanceService } from "./instance-service.ts";
import { openRegistrar, type InstanceRegistrar } from "./registrar.ts";

/** What a role's service works with. */
export interface InstanceParts {
  readonly connector: Connector;
  readonly board: Board;
  readonly supervisor: EngineSupervisor;
  readonly token: string;
  readonly log: Log;
  readonly clock: Clock;
}

export interface RoleService {
  readonly rpc: RpcService;
  /** An engine became available or was lost. */
  engineChanged?(): void;
  /** Ends every leg that still runs: the grace is over. */
  abortLegs(): void;
  /** Resolves when no KV of an ended leg is left in the engine. */
  settled?(): Promise<void>;
}

export interface RunningInstance {
  /** host:port that others dial. */
  readonly address: string;
  info(): Info;
  load(): Load;
  readonly supervisor: EngineSupervisor;
  /** Drains up to `graceMs` (default: drain.grace_ms), then stops everything. May be called twice. */
  close(graceMs?: number): Promise<void>;
  /** Without any grace, as a test wants it. */
  [Symbol.asyncDispose](): Promise<void>;
}

export interface StartOptions {
  /** Ends a start that has not succeeded. Afterwards the caller decides, with `close`. */
  readonly stop?: AbortSignal;
  readonly log?: Log;
  readonly clock?: Clock;
}

/** Resolves when the engine works and legs are taken; on failure nothing is left behind. */
export async function startInstance(
  role: InstanceRole,
  config: InstanceConfig,
  makeService: (parts: InstanceParts) => RoleService,
  o: StartOptions = {},
): Promise<RunningInstance> {
  const level = config.process.logLevel;
  const log = o.log ?? createLog({ name: role, ...(level === undefined ? {} : { level }) });
  const { clock = systemClock } = o;
  const connector = CONNECTORS[connectorName(config)];
  const board = createBoard(config.legs.slots);
  const startedUnixMs = BigInt(Date.now());
  const instanceId = `${role}-${randomUUID()}`;
  const stop = o.stop ?? new AbortController().signal;
  const over = new AbortController();
  let examined: LiveEngine | undefined;
  let findings: readonly Finding[] = [];
  let pings: Promise<PingListener> | undefined;
  const onPhase = (phase: string): void => {
    log.info("engine loading", { phase });
    board.setEngine(`the engine is starting: ${phase}`);
  };
  // The engine's own pings, to this instance alone: they report its actual KV address.
  const openPings = (): Promise<PingListener> =>
    (pings ??= listenForPings({ listen: joinAddress(splitAddress(config.kv.listen).host, 0), log }));
  const supervisor = new EngineSupervisor({
    source: engineSource(role, config, connector, { log, clock }, onPhase, openPings),
    log,
    clock,
    // A decode engine is given its KV and computes no prompt.
    work: () => ({
      legs: board.waitingForEngine,
      promptTokens: role === "prefill" ? board.load().queuedTokens : 0,
    }),
    stallMs: config.legs.stallMs,
    kvWaitMs: role === "decode" ? connector.traits.firstTransferMs : 0,
    emptied: (gone) => untilSo(board, clock, () => board.remaining === 0, config.process.drainGraceMs, gone),
  });

  let server: RpcServer | undefined;
  let registrar: InstanceRegistrar | undefined;
  let registration: Registration | undefined;
  /** Of the last engine that worked: while the next one loads, the instance is still the same. */
  let lastInfo: MessageInitShape<typeof InfoSchema> = {};

  const info = (): Info => {
    const live = supervisor.live;
    if (live !== undefined) {
      lastInfo = {
        model: live.facts.model,
        maxModelLen: live.facts.maxModelLen,
        kvAddress: live.kvAddress,
        engine: live.facts.kind,
        engineVersion: live.facts.version,
        blockSize: live.facts.blockSize,
        tpSize: live.facts.tpSize ?? 0,
        dtype: live.facts.dtype ?? "",
        modelRoot: live.facts.modelRoot ?? "",
      };
    }
    return create(InfoSchema, {
      ...lastInfo,
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
  };

  const service = makeService({ connector, board, supervisor, token: config.grpc.token, log, clock });
  const standing = (): SelfReport => standingOf(board);
  let reported = standing();
  board.onChange(() => {
    const now = standing();
    if (now.serving === reported.serving && now.text === reported.text) return;
    reported = now;
    server?.setServing(now.serving, now.text);
    registration?.update();
  });

  let closing: Promise<void> | undefined;
  async function closeAll(graceMs: number): Promise<void> {
    // The state goes out first: routers watch it, and a leg they send meanwhile is refused, to be tried elsewhere. The
    // entry stays until the last leg ended, so that no router drops a connection that is in use.
    board.setStopping();
    // KV that is being settled may still be under way: a prefill engine that sends it to one that is gone waits
    // forever (P2P NCCL).
    if (graceMs > 0) await untilSo(board, clock, () => board.remaining + board.load().kvOrphans === 0, graceMs);
    service.abortLegs();
    // An engine of our own dies with its KV; an attached one goes on, and others would find it full.
    if (!supervisor.ours && service.settled !== undefined) await settlesWithin(clock, service.settled(), 1_000);
    await registration?.[Symbol.asyncDispose]();
    registrar?.close();
    over.abort(new Error("stopped"));
    // 1 s: an interrupted instance promises to be gone within 2.
    await supervisor.stop(Math.max(1_000, Math.min(graceMs, 10_000)));
    await (await pings?.catch(() => undefined))?.[Symbol.asyncDispose]();
    board.setStopped();
    await server?.[Symbol.asyncDispose]();
  }
  const close = (graceMs: number): Promise<void> => (closing ??= closeAll(graceMs));

  try {
    server = await serveRpc({
      listen: config.grpc.listen,
      services: [service.rpc, instanceService({ board, info, findings: () => findings, log })],
      ...(config.grpc.token === "" ? {} : { token: config.grpc.token }),
      log,
      graceMs: 500,
    });
    await supervisor.start(anySignal(stop, over.signal));
    let lastLive = supervisor.live;
    const follow = (): void => {
      const { live, reason } = supervisor;
      // First, so that no load report claims to serve with the address of an engine that is gone.
      board.setKvAddress(live?.kvAddress ?? "");
      if (live !== undefined && live !== examined) {
        examined = live;
        findings = engineFindings(role, config, connector, live);
        for (const { level, check, message, cure } of findings)
          if (level >= FindingLevel.WARNING) log.warn("doctor finding", { check, message, cure });
      }
      board.setEngine(live === undefined ? reason : startRefusalOf(findings));
      board.setRetiring(live === undefined ? "" : reason);
      board.setGauges(supervisor.gauges);
      if (live === lastLive) return;
      lastLive = live;
      service.engineChanged?.();
      if (live !== undefined) registration?.update();
    };
    supervisor.onChange(follow);
    follow();
    registrar = await openRegistrar(config, log);
    registration = await registrar?.register(info, over.signal, () => ({
      ...standing(),
      load: `${board.load().freeSlots} of ${board.slotLimit} slots free`,
    }));
  } catch (error) {
    await close(0);
    throw error;
  }

  const instance: RunningInstance = {
    address: info().grpcAddress,
    info,
    load: board.load,
    supervisor,
    close: (graceMs = config.process.drainGraceMs) => close(graceMs),
    [Symbol.asyncDispose]: () => close(0),
  };
  return instance;
}

/** The state that the health check and the registry report. */
function standingOf(board: Board): SelfReport {
  if (board.state === State.SERVING) return { serving: true, text: "serving" };
  const state = State[board.state].toLowerCase();
  const { reason } = board.load();
  return { serving: false, text: reason === "" || reason === state ? state : `${state}: ${reason}` };
}

function engineKind(config: InstanceConfig): EngineKind {
  const { connector } = config.kv;
  if (config.engine.kind === undefined && connector !== undefined && connector !== "p2p-zmq") {
    throw new ConfigError(`--connector ${connector} needs --engine vllm with a --model, or --engine sim.`);
  }
  return config.engine.kind ?? defaultEngineKind(config.engine.model);
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
  const common = { model: config.engine.model, servesUnpaired, startTimeoutMs: config.engine.startTimeoutMs, ...o };
  const url = config.engine.attach;
  if (url !== "") {
    if (!url.startsWith("http://") || !URL.canParse(url))
      throw new ConfigError(`engine.attach: ${url} is not an http:// URL.`);
    const kvAddress = config.engine.kvAddress;
    if (pairedId && kvAddress === undefined) {
      throw new ConfigError(
        `With connector ${name}, an attached engine needs --engine.kv_address HOST:PORT: requests carry it.`,
      );
    }
    return attachedEngine({
      ...common,
      url,
      apiKey: config.engine.apiKey,
      kind: config.engine.kind,
      kvAddress: pairedId ? kvAddress! : "",
    });
  }
  const kind = engineKind(config);
  const { model, flags, servedName } = config.engine;
  const { host: kvHost, port: kvPort } = splitAddress(config.kv.listen);
  if (kvPort === 0) throw new ConfigError("kv.listen: give a port of at least 1, which is the first one to try.");
  const vllm = { ...config.vllm, servedName, pings };
  return spawnedEngine({
    ...common,
    // A real model is what is loaded; the name it is served under follows from the flags.
    ...(kind === "sim" ? {} : { model: servedName }),
    kind,
    launch: launcherOf(kind, { role, connector: name, model, slots: config.legs.slots, flags }, vllm),
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

/** Resolves when it is so, or `limitMs` have passed, or `gone` is aborted. */
function untilSo(board: Board, clock: Clock, isSo: () => boolean, limitMs: number, gone?: AbortSignal): Promise<void> {
  if (isSo() || gone?.aborted === true) return Promise.resolve();
  return new Promise((resolve) => {
    const done = (): void => {
      timer.cancel();
      forget();
      gone?.removeEventListener("abort", done);
      resolve();
    };
    const timer = clock.setTimer(limitMs, done);
    const forget = board.onChange(() => {
      if (isSo()) done();
    });
    gone?.addEventListener("abort", done, { once: true });
  });
}
