// One engine behind its HTTP server, with its connector, its faults and its state for inspection. The sim and the
// embedded engine start alike.
import assert from "node:assert/strict";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { joinAddress } from "../common/address.ts";
import { systemClock, type Clock } from "../common/clock.ts";
import type { ConnectorName, EngineRole } from "./engine.ts";
import type { CoreOptions, EngineCore } from "./engine-core.ts";
import { FaultBoard, type Fault } from "./faults.ts";
import type { Outcome } from "./http/answer.ts";
import { badRequest, errorBody } from "./http/exchange.ts";
import { createEngineServer } from "./http/server.ts";
import type { Connector } from "./kv/connector.ts";

/** What every engine is started with. Settings of `tandem engine` explain them. */
export interface EngineOptions {
  /** Loopback: nothing guards an engine. */
  readonly host?: string;
  /** 0: any free one. */
  readonly port?: number;
  /** A Unix socket to serve on, instead of host and port. */
  readonly socketPath?: string | undefined;
  readonly role?: EngineRole;
  readonly connector?: ConnectorName;
  readonly modelName?: string | undefined;
  /** Limit on prompt and answer together, in tokens. */
  readonly maxLength?: number | undefined;
  /** `host:port` of the KV socket; the port may be 0. */
  readonly kvListen?: string;
  /** Proves other engines to this one, which must have the same. Empty: none. */
  readonly kvKey?: string;
  /** Sequences that run or hold KV at one time; more wait. */
  readonly kvSlots?: number;
  /** KV of all sequences together. Default: enough for every slot's longest sequence. */
  readonly kvTokenLimit?: number | undefined;
  readonly kvLeaseMs?: number;
  /** Timeout of a KV push. */
  readonly kvPushTimeoutMs?: number;
  /** Timeout of a nixl handshake. vLLM's is 5 s. */
  readonly handshakeTimeoutMs?: number;
  readonly faults?: readonly (string | Fault)[];
  /** Whether /sim/state and /sim/fault are served. */
  readonly inject?: boolean;
  /** As vLLM's --enable-prompt-tokens-details. */
  readonly reportCachedTokens?: boolean;
  readonly clock?: Clock;
  /** How long a dead core still answers, with 503, before its process goes. */
  readonly deathMs?: number;
  /** Called once if a fault killed the engine; its sockets are closed by then. */
  readonly onDeath?: () => void;
}

export type EngineState = ReturnType<typeof stateOf>;

export interface RunningEngine extends AsyncDisposable {
  /** http://host:port, or unix:/path. */
  readonly url: string;
  /** `host:port`, null without a connector. */
  readonly kvAddress: string | null;
  state(): EngineState;
  setFault(fault: string | Fault): void;
  clearFaults(): void;
  /** How the next generation request ends, counted from this call. */
  nextOutcome(): Promise<Outcome>;
  /** Closes every socket at once, as when the process is killed. */
  kill(): void;
}

/** @throws Error if an address cannot be bound; the engine is then closed. */
export async function serveEngine(
  options: EngineOptions,
  createCore: (options: CoreOptions) => EngineCore,
): Promise<RunningEngine> {
  const { role = "none", connector: connectorName = "none", host = "127.0.0.1", clock = systemClock } = options;
  const { socketPath } = options;
  const outcomes: Record<Outcome, number> = { finished: 0, aborted: 0, failed: 0, refused: 0 };
  let outcomeWaiters: ((outcome: Outcome) => void)[] = [];
  let stopped = false;
  const stop = (): void => {
    stopped = true;
    server.close();
    server.closeAllConnections();
    core.close();
  };
  const kill = (): void => {
    if (stopped) return;
    stop();
    options.onDeath?.();
  };
  const core = createCore({ clock, onDeath: () => void clock.setTimer(options.deathMs ?? 200, kill) });
  const faults = new FaultBoard(options.faults ?? [], (board) => core.setHung(board.has("hang")));
  const server = createEngineServer({
    engine: core,
    faults,
    reportCached: options.reportCachedTokens ?? false,
    die: kill,
    admin,
    onOutcome(outcome) {
      outcomes[outcome]++;
      const waiters = outcomeWaiters;
      outcomeWaiters = [];
      for (const waiter of waiters) waiter(outcome);
    },
  });
  let connector: Connector | null;
  try {
    connector = await startConnector(core, options, faults, clock);
    if (connector !== null) core.useConnector(connector);
    if (socketPath === undefined) server.listen(options.port ?? 0, host);
    else server.listen(socketPath);
    await once(server, "listening");
  } catch (error) {
    core.close();
    throw error;
  }
  const url =
    socketPath === undefined
      ? `http://${joinAddress(host, (server.address() as AddressInfo).port)}`
      : `unix:${socketPath}`;

  const state = (): EngineState => stateOf(core, connector, { role, connectorName, url }, outcomes, faults);

  function admin(method: string, path: string, body: string): { status: number; json: string } | null {
    try {
      if (path === "/sim/kind" && method === "GET") return { status: 200, json: JSON.stringify({ kind: core.kind }) };
      if (path === "/kv/release" && method === "POST") {
        const id = (JSON.parse(body) as { request_id?: unknown }).request_id;
        if (typeof id !== "string" || id === "") throw new RangeError("request_id is needed");
        return { status: 200, json: JSON.stringify({ released: connector?.release(id) ?? 0 }) };
      }
      if (options.inject !== true) return null;
      if (path === "/sim/state" && method === "GET") return { status: 200, json: JSON.stringify(state()) };
      if (path === "/sim/fault" && method === "DELETE") faults.clear();
      else if (path === "/sim/fault" && method === "POST") {
        const sent = JSON.parse(body) as Fault | Fault[];
        faults.add(...(Array.isArray(sent) ? sent : [sent]));
      } else return null;
      return { status: 200, json: JSON.stringify({ faults: faults.active }) };
    } catch (error) {
      return { status: 400, json: errorBody(badRequest((error as Error).message)) };
    }
  }

  return {
    url,
    kvAddress: connector?.address ?? null,
    state,
    setFault: (fault) => faults.add(fault),
    clearFaults: () => faults.clear(),
    nextOutcome: () => new Promise((resolve) => outcomeWaiters.push(resolve)),
    kill,
    async [Symbol.asyncDispose]() {
      if (stopped) return;
      const closed = once(server, "close");
      stop();
      await closed;
    },
  };
}

/** What `/sim/state` says. */
function stateOf(
  core: EngineCore,
  connector: Connector | null,
  { role, connectorName, url }: { role: EngineRole; connectorName: ConnectorName; url: string },
  outcomes: Readonly<Record<Outcome, number>>,
  faults: FaultBoard,
) {
  const kv = connector?.state() ?? { held: [], leasesExpired: 0, lateCount: 0, sentBytes: 0, receivedBytes: 0 };
  return {
    engine: core.kind,
    model: core.model.name,
    model_hash: core.kv.modelHash,
    role,
    connector: connectorName,
    url,
    kv_address: connector?.address ?? null,
    alive: core.alive,
    running: core.runningCount,
    waiting: core.waitingCount,
    kv_tokens: core.kvTokens,
    /** KV held for other engines: pushed here and unclaimed, or offered and unread. */
    kv_held: kv.held,
    /** How many of them are complete: these may never be claimed. */
    kv_orphans: kv.held.filter(({ stage }) => stage === "ready").length,
    /** The same and KV in running sequences, by stage. */
    kv_stages: core.kvStages(),
    kv_late: kv.lateCount,
    leases_expired: kv.leasesExpired,
    kv_sent_bytes: kv.sentBytes,
    kv_received_bytes: kv.receivedBytes,
    prompt_tokens: core.metrics.promptTokens,
    generation_tokens: core.metrics.generationTokens,
    streamed_bytes: core.metrics.streamedBytes,
    outcomes: { ...outcomes },
    faults: faults.active,
  };
}

/** Loaded only here: an engine without a connector needs no sockets. */
async function startConnector(
  { kv, space, metrics }: EngineCore,
  options: EngineOptions,
  faults: FaultBoard,
  clock: Clock,
): Promise<Connector | null> {
  const { role, connector, kvListen: listen = "127.0.0.1:0", kvLeaseMs: leaseMs = 30_000 } = options;
  const common = { listen, key: options.kvKey ?? "", space, faults, clock, leaseMs };
  if (connector === "p2p-zmq") {
    const { startP2pZmq } = await import("./kv/p2p-zmq.ts");
    const prefills = role === "prefill";
    return startP2pZmq({ ...common, model: kv, prefills, pushTimeoutMs: options.kvPushTimeoutMs ?? 5_000 });
  }
  if (connector !== "nixl") return null;
  const { startNixl } = await import("./kv/nixl.ts");
  assert("blocksOf" in kv, "config.ts refuses nixl for the embedded engine");
  return startNixl({ ...common, model: kv, metrics, handshakeTimeoutMs: options.handshakeTimeoutMs ?? 5_000 });
}
