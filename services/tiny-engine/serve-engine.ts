// One engine behind its HTTP server, with its connector, its faults and its state for inspection. From here on, the sim
// and the embedded engine start alike.
import { once } from "node:events";
import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import type { Engine } from "./engine.ts";
import { parseFault, type Fault, type FaultBoard } from "./faults.ts";
import type { Outcome } from "./http/answer.ts";
import { errorBody } from "./http/exchange.ts";
import { createEngineServer } from "./http/server.ts";
import type { Connector, ConnectorState } from "./kv/connector.ts";
import type { EngineMetrics } from "./metrics.ts";
import type { ConnectorName, EngineRole } from "./roles.ts";

export interface EngineState {
  /** Which of Tandem's engines this is. */
  readonly engine: "sim" | "embedded";
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
  /** KV held for other engines: pushed here and unclaimed, or offered and unread. */
  readonly kv_held: ConnectorState["held"];
  /** How many of them are complete: these may never be claimed. */
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
  /** Closes every socket at once, as when the process is killed. */
  kill(): void;
}

/** An engine as the server runs it. */
export interface EngineCore extends Engine {
  readonly modelHash: string;
  readonly runningCount: number;
  readonly waitingCount: number;
  readonly kvTokens: number;
  readonly metrics: EngineMetrics;
  /** The connector with it. */
  close(): void;
}

export interface ServeOptions {
  readonly kind: EngineState["engine"];
  readonly core: EngineCore;
  readonly connector: Connector | null;
  readonly connectorName: ConnectorName;
  readonly role: EngineRole;
  readonly faults: FaultBoard;
  readonly reportCached: boolean;
  readonly host: string;
  readonly port: number;
  /** Called once if a fault killed the engine; its sockets are closed by then. */
  readonly onDeath?: () => void;
}

/** @throws Error if the address cannot be bound; the engine is then closed. */
export async function serveEngine(options: ServeOptions): Promise<RunningEngine> {
  const { core, connector, faults, role, host } = options;
  const outcomes: Record<Outcome, number> = { finished: 0, aborted: 0, failed: 0, refused: 0 };
  let outcomeWaiters: ((outcome: Outcome) => void)[] = [];
  const server = createEngineServer({
    engine: core,
    faults,
    reportCached: options.reportCached,
    die: () => kill(),
    admin: (...request) => admin(...request),
    onOutcome(outcome) {
      outcomes[outcome]++;
      const waiters = outcomeWaiters;
      outcomeWaiters = [];
      for (const waiter of waiters) waiter(outcome);
    },
  });
  try {
    await listen(server, host, options.port);
  } catch (error) {
    core.close();
    throw error;
  }
  const url = `http://${host.includes(":") ? `[${host}]` : host}:${(server.address() as AddressInfo).port}`;

  let killed = false;
  const kill = (): void => {
    if (killed) return;
    killed = true;
    server.close();
    server.closeAllConnections();
    core.close();
    options.onDeath?.();
  };
  const state = (): EngineState => {
    const kv = connector?.state() ?? { held: [], leasesExpired: 0, sentBytes: 0, receivedBytes: 0 };
    return {
      engine: options.kind,
      model: core.model.name,
      model_hash: core.modelHash,
      role,
      connector: options.connectorName,
      url,
      kv_address: connector?.address ?? null,
      alive: core.alive,
      running: core.runningCount,
      waiting: core.waitingCount,
      kv_tokens: core.kvTokens,
      kv_held: kv.held,
      kv_orphans: kv.held.filter(({ stage }) => stage === "ready").length,
      leases_expired: kv.leasesExpired,
      kv_sent_bytes: kv.sentBytes,
      kv_received_bytes: kv.receivedBytes,
      prompt_tokens: core.metrics.promptTokens,
      generation_tokens: core.metrics.generationTokens,
      outcomes: { ...outcomes },
      faults: faults.active,
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
      return {
        status: 400,
        json: errorBody({ status: 400, type: "BadRequestError", message: (error as Error).message, param: null }),
      };
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
      core.close();
      await closed;
    },
  };
}

async function listen(server: Server, host: string, port: number): Promise<void> {
  server.listen(port, host);
  await once(server, "listening");
}
