// Starts sim engines: one HTTP server, one engine core and one KV connector each, several in one process
// if asked. This is the door for tests and benchmarks; main.ts is the one for the command line.
import { once } from "node:events";
import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import type { Clock } from "../common/clock.ts";
import { engineClock } from "./clock.ts";
import { FaultBoard, parseFault, type Fault } from "./faults.ts";
import type { Outcome } from "./http/answer.ts";
import { errorBody } from "./http/exchange.ts";
import { createEngineServer } from "./http/server.ts";
import type { Connector, ConnectorState } from "./kv/connector.ts";
import { startNixl } from "./kv/nixl.ts";
import { startP2pZmq } from "./kv/p2p-zmq.ts";
import { MIN_ROW_BYTES } from "./sim/kv-rows.ts";
import { SimEngine } from "./sim/sim-engine.ts";

export const ROLES = ["none", "prefill", "decode"] as const;
export const CONNECTORS = ["none", "p2p-zmq", "nixl"] as const;

export interface SimEngineOptions {
  /** Loopback: nothing guards an engine. */
  readonly host?: string;
  /** 0: any free one. */
  readonly port?: number;
  readonly modelName?: string;
  readonly maxLength?: number;
  readonly hashSalt?: string;
  readonly role?: (typeof ROLES)[number];
  readonly connector?: (typeof CONNECTORS)[number];
  /** `host:port` of the KV socket; the port may be 0. */
  readonly kvListen?: string;
  /** Sequences that run or hold KV at one time; more wait. */
  readonly kvSlots?: number;
  /** KV of all sequences together. Default: enough for every slot's longest sequence. */
  readonly kvTokenLimit?: number;
  readonly kvBlockSize?: number;
  readonly kvBytesPerToken?: number;
  readonly kvLeaseMs?: number;
  /** How long a push of KV may take. */
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
  /** Called once when the instance died of a fault; its sockets are closed by then. */
  readonly onDeath?: () => void;
}

export interface EngineState {
  readonly model: string;
  readonly model_hash: string;
  readonly role: string;
  readonly connector: string;
  readonly url: string;
  readonly kv_address: string | null;
  readonly alive: boolean;
  readonly running: number;
  readonly waiting: number;
  readonly kv_tokens: number;
  /** KV held for somebody else: pushed here and unclaimed, or offered and unread. */
  readonly kv_held: ConnectorState["held"];
  /** How many of them are complete: nobody may ever come for these. */
  readonly kv_orphans: number;
  readonly leases_expired: number;
  readonly kv_sent_bytes: number;
  readonly kv_received_bytes: number;
  readonly prompt_tokens: number;
  readonly generation_tokens: number;
  readonly outcomes: Readonly<Record<Outcome, number>>;
  readonly faults: readonly Fault[];
}

export interface RunningEngine extends AsyncDisposable {
  readonly url: string;
  /** `host:port`, null without a connector. */
  readonly kvAddress: string | null;
  state(): EngineState;
  setFault(fault: string | Fault): void;
  clearFaults(): void;
  /** How the next generation request ends, counted from this call. */
  nextOutcome(): Promise<Outcome>;
  /** Every socket closes at once, as when the process is killed. */
  kill(): void;
}

/**
 * @throws RangeError for options that contradict each other, Error when an address cannot be bound.
 */
export async function startSimEngine(options: SimEngineOptions = {}): Promise<RunningEngine> {
  const { role = "none", connector: connectorName = "none", clock = engineClock, host = "127.0.0.1" } = options;
  const { kvSlots = 64, maxLength = 8192, kvBlockSize = 16, kvBytesPerToken = 256 } = options;
  if (kvBytesPerToken < MIN_ROW_BYTES || kvBytesPerToken % 4 !== 0) {
    throw new RangeError(`kv.bytes_per_token must be a multiple of 4 from ${MIN_ROW_BYTES} up, got ${kvBytesPerToken}`);
  }
  if (connectorName !== "none" && role === "none") throw new RangeError(`connector ${connectorName} needs a role: prefill or decode`);
  if (connectorName === "none" && role !== "none") throw new RangeError(`role ${role} needs a connector: p2p-zmq or nixl`);

  const faults = new FaultBoard((options.faults ?? []).map((fault) => typeof fault === "string" ? parseFault(fault) : fault),
    () => engine.setHung(faults.has("hang")));
  const engine: SimEngine = new SimEngine({
    modelName: options.modelName ?? "tandem-sim", maxLength, hashSalt: options.hashSalt ?? "", slots: kvSlots, blockSize: kvBlockSize,
    bytesPerToken: kvBytesPerToken, kvTokenLimit: options.kvTokenLimit ?? kvSlots * maxLength, clock, faults,
    withNixl: connectorName === "nixl",
    timing: {
      prefillMsPerToken: options.prefillMsPerToken ?? 0.05, decodeMsPerToken: options.decodeMsPerToken ?? 8,
      requestMs: options.requestMs ?? 0, stepTokenLimit: options.stepTokenLimit ?? 2048,
    },
    onDeath: () => void clock.setTimer(options.deathMs ?? 200, () => kill()),
  });
  engine.setHung(faults.has("hang"));
  const connector = connectorName === "none" ? null : await startConnector(options, engine, faults, clock);
  if (connector !== null) engine.useConnector(connector);

  const outcomes: Record<Outcome, number> = { finished: 0, aborted: 0, failed: 0, refused: 0 };
  let outcomeWaiters: ((outcome: Outcome) => void)[] = [];
  const server = createEngineServer({
    engine, faults, reportCached: options.reportCachedTokens ?? false, die: () => kill(), admin: (...request) => admin(...request),
    onOutcome(outcome) {
      outcomes[outcome]++;
      const waiters = outcomeWaiters;
      outcomeWaiters = [];
      for (const waiter of waiters) waiter(outcome);
    },
  });
  try {
    await listen(server, host, options.port ?? 0);
  } catch (error) {
    engine.close();
    throw error;
  }
  const url = `http://${host.includes(":") ? `[${host}]` : host}:${(server.address() as AddressInfo).port}`;

  let killed = false;
  const kill = (): void => {
    if (killed) return;
    killed = true;
    server.close();
    server.closeAllConnections();
    engine.close();
    options.onDeath?.();
  };
  const state = (): EngineState => {
    const kv = connector?.state() ?? { held: [], leasesExpired: 0, sentBytes: 0, receivedBytes: 0 };
    return {
      model: engine.model.name, model_hash: engine.modelHash, role, connector: connectorName, url, kv_address: connector?.address ?? null,
      alive: engine.alive, running: engine.runningCount, waiting: engine.waitingCount, kv_tokens: engine.kvTokens, kv_held: kv.held,
      kv_orphans: kv.held.filter(({ stage }) => stage === "ready").length, leases_expired: kv.leasesExpired, kv_sent_bytes: kv.sentBytes,
      kv_received_bytes: kv.receivedBytes, prompt_tokens: engine.metrics.promptTokens, generation_tokens: engine.metrics.generationTokens,
      outcomes: { ...outcomes }, faults: faults.active,
    };
  };
  const admin = (method: string, path: string, body: string): { status: number; json: string } | null => {
    try {
      if (path === "/sim/state" && method === "GET") return { status: 200, json: JSON.stringify(state()) };
      if (path === "/sim/fault" && method === "DELETE") faults.clear();
      else if (path === "/sim/fault" && method === "POST") {
        const sent = JSON.parse(body) as string | Record<string, unknown> | (string | Record<string, unknown>)[];
        for (const fault of (Array.isArray(sent) ? sent : [sent]).map(parseFault)) faults.add(fault);
      } else if (path === "/kv/release" && method === "POST") {
        const id = (JSON.parse(body) as { request_id?: unknown }).request_id;
        if (typeof id !== "string" || id === "") throw new RangeError("request_id is needed");
        return { status: 200, json: JSON.stringify({ released: connector?.release(id) ?? 0 }) };
      } else return null;
      return { status: 200, json: JSON.stringify({ faults: faults.active }) };
    } catch (error) {
      return { status: 400, json: errorBody({ status: 400, type: "BadRequestError", message: (error as Error).message, param: null }) };
    }
  };

  return {
    url,
    kvAddress: connector?.address ?? null,
    state,
    setFault: (fault) => faults.add(typeof fault === "string" ? parseFault(fault) : fault),
    clearFaults: () => faults.clear(),
    nextOutcome: () => new Promise((resolve) => outcomeWaiters.push(resolve)),
    kill,
    async [Symbol.asyncDispose]() {
      if (killed) return;
      killed = true;
      const closed = once(server, "close");
      server.close();
      server.closeAllConnections();
      engine.close();
      await closed;
    },
  };
}

/** `count` engines of the same kind. Ports follow each other from the given one, or are any free ones. */
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
  const colon = address.lastIndexOf(":");
  const port = Number(address.slice(colon + 1));
  return `${address.slice(0, colon)}:${port === 0 ? 0 : port + step}`;
}

function startConnector(options: SimEngineOptions, engine: SimEngine, faults: FaultBoard, clock: Clock): Promise<Connector> {
  const { kvListen: listenOn = "127.0.0.1:0", kvLeaseMs: leaseMs = 30_000 } = options;
  const common = { listen: listenOn, model: engine, space: engine, faults, clock, leaseMs };
  if (options.connector === "p2p-zmq") {
    return startP2pZmq({ ...common, role: options.role === "prefill" ? "prefill" : "decode", pushTimeoutMs: options.kvPushTimeoutMs ?? 5_000 });
  }
  const blockCount = Math.ceil((options.kvTokenLimit ?? (options.kvSlots ?? 64) * (options.maxLength ?? 8192)) / engine.blockSize);
  return startNixl({ ...common, metrics: engine.metrics, handshakeTimeoutMs: options.handshakeTimeoutMs ?? 5_000, blockCount });
}

async function listen(server: Server, host: string, port: number): Promise<void> {
  server.listen(port, host);
  await once(server, "listening");
}
