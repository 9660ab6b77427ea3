// Starts sim engines: one HTTP server, one engine core and one KV connector each, several in one process
// if asked. Tests and benchmarks start here; the command line starts at main.ts.
import { joinAddress, splitAddress } from "../common/address.ts";
import type { Clock } from "../common/clock.ts";
import { engineClock } from "./clock.ts";
import { FaultBoard, parseFault, type Fault } from "./faults.ts";
import type { Connector } from "./kv/connector.ts";
import { startP2pZmq } from "./kv/p2p-zmq.ts";
import type { ConnectorName, EngineRole } from "./roles.ts";
import { serveEngine, type RunningEngine } from "./serve-engine.ts";
import { MIN_ROW_BYTES } from "./sim/kv-rows.ts";
import { SimEngine } from "./sim/sim-engine.ts";

export type { RunningEngine } from "./serve-engine.ts";

export interface SimEngineOptions {
  /** Loopback: nothing guards an engine. */
  readonly host?: string;
  /** 0: any free one. */
  readonly port?: number;
  readonly modelName?: string;
  readonly maxLength?: number;
  readonly hashSalt?: string;
  readonly role?: EngineRole;
  readonly connector?: ConnectorName;
  /** `host:port` of the KV socket; the port may be 0. */
  readonly kvListen?: string;
  /** Sequences that run or hold KV at one time; more wait. */
  readonly kvSlots?: number;
  /** KV of all sequences together. Default: enough for every slot's longest sequence. */
  readonly kvTokenLimit?: number;
  readonly kvBlockSize?: number;
  readonly kvBytesPerToken?: number;
  readonly kvLeaseMs?: number;
  /** Timeout of a KV push. */
  readonly kvPushTimeoutMs?: number;
  /** vLLM's is 5 s. */
  readonly handshakeTimeoutMs?: number;
  readonly prefillMsPerToken?: number;
  readonly decodeMsPerToken?: number;
  readonly requestMs?: number;
  readonly stepTokenLimit?: number;
  readonly faults?: readonly (string | Fault)[];
  readonly reportCachedTokens?: boolean;
  readonly clock?: Clock;
  /** How long a dead core still answers, with 503, before its process goes. */
  readonly deathMs?: number;
  /** Called once if a fault killed the engine; its sockets are closed by then. */
  readonly onDeath?: () => void;
}

/** @throws RangeError for options that contradict each other, Error if an address cannot be bound. */
export async function startSimEngine(options: SimEngineOptions = {}): Promise<RunningEngine> {
  const { role = "none", connector: connectorName = "none", clock = engineClock, host = "127.0.0.1" } = options;
  const { kvSlots = 64, maxLength = 8192, kvBlockSize = 16, kvBytesPerToken = 256 } = options;
  if (kvBytesPerToken < MIN_ROW_BYTES || kvBytesPerToken % 4 !== 0) {
    throw new RangeError(
      `kv.bytes_per_token must be a multiple of 4 and at least ${MIN_ROW_BYTES}, got ${kvBytesPerToken}`,
    );
  }
  if (connectorName !== "none" && role === "none")
    throw new RangeError(`connector ${connectorName} needs a role: prefill or decode`);
  if (connectorName === "none" && role !== "none")
    throw new RangeError(`role ${role} needs a connector: p2p-zmq or nixl`);

  let kill: () => void = () => {};
  const faults = new FaultBoard(
    (options.faults ?? []).map((fault) => (typeof fault === "string" ? parseFault(fault) : fault)),
    () => engine.setHung(faults.has("hang")),
  );
  const engine: SimEngine = new SimEngine({
    modelName: options.modelName ?? "tandem-sim",
    maxLength,
    hashSalt: options.hashSalt ?? "",
    slots: kvSlots,
    blockSize: kvBlockSize,
    bytesPerToken: kvBytesPerToken,
    kvTokenLimit: options.kvTokenLimit ?? kvSlots * maxLength,
    clock,
    faults,
    withNixl: connectorName === "nixl",
    timing: {
      prefillMsPerToken: options.prefillMsPerToken ?? 0.05,
      decodeMsPerToken: options.decodeMsPerToken ?? 8,
      requestMs: options.requestMs ?? 0,
      stepTokenLimit: options.stepTokenLimit ?? 2048,
    },
    onDeath: () => void clock.setTimer(options.deathMs ?? 200, () => kill()),
  });
  engine.setHung(faults.has("hang"));
  const connector = connectorName === "none" ? null : await startConnector(options, engine, faults, clock);
  if (connector !== null) engine.useConnector(connector);
  const running = await serveEngine({
    kind: "sim",
    core: engine,
    connector,
    connectorName,
    role,
    faults,
    reportCached: options.reportCachedTokens ?? false,
    host,
    port: options.port ?? 0,
    ...(options.onDeath === undefined ? {} : { onDeath: options.onDeath }),
  });
  kill = running.kill;
  return running;
}

/** `count` engines of the same kind, on consecutive ports from the given one, or on any free ports. */
export async function startSimEngines(options: SimEngineOptions, count: number): Promise<RunningEngine[]> {
  const engines: RunningEngine[] = [];
  try {
    for (let index = 0; index < count; index++) {
      const port = options.port ? options.port + index : 0;
      const kvListen = nextPort(options.kvListen ?? "127.0.0.1:0", index);
      engines.push(await startSimEngine({ ...options, port, kvListen }));
    }
  } catch (error) {
    await Promise.all(engines.map((engine) => engine[Symbol.asyncDispose]()));
    throw error;
  }
  return engines;
}

function nextPort(address: string, step: number): string {
  const { host, port } = splitAddress(address);
  return joinAddress(host, port === 0 ? 0 : port + step);
}

async function startConnector(
  options: SimEngineOptions,
  engine: SimEngine,
  faults: FaultBoard,
  clock: Clock,
): Promise<Connector> {
  const { kvListen: listenOn = "127.0.0.1:0", kvLeaseMs: leaseMs = 30_000 } = options;
  const common = { listen: listenOn, model: engine, space: engine, faults, clock, leaseMs };
  if (options.connector === "p2p-zmq") {
    return startP2pZmq({
      ...common,
      prefills: options.role === "prefill",
      pushTimeoutMs: options.kvPushTimeoutMs ?? 5_000,
    });
  }
  const { startNixl } = await import("./kv/nixl.ts");
  return startNixl({
    ...common,
    metrics: engine.metrics,
    handshakeTimeoutMs: options.handshakeTimeoutMs ?? 5_000,
  });
}
