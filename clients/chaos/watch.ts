// Observes the deployment from outside during the faults: receipts, KV that engines hold, the routers' own figures.
import { Agent } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import type { Cluster } from "./cluster.ts";
import { timedRequest } from "../common/timed-request.ts";

export interface SeenLeg {
  readonly legId: string;
  /** Names of instances; empty if unknown. */
  readonly prefill: string;
  readonly decode: string;
  readonly error: string;
}

export interface SeenReceipt {
  readonly requestId: string;
  readonly router: string;
  readonly errorCode: string;
  readonly error: string;
  readonly legs: readonly SeenLeg[];
  readonly fallbacks: readonly string[];
}

/** KV that is complete on a decode engine and waits to be claimed. */
export interface SeenKv {
  readonly instance: string;
  readonly id: string;
  readonly readySinceMs: number;
  lastSeenMs: number;
}

export interface RouterFigures {
  readonly router: string;
  /** Heap in use, by time in seconds. */
  readonly heap: { readonly atS: number; readonly bytes: number }[];
  /** Cumulative counts of event-loop delays by upper bound in seconds, summed over its processes. */
  readonly delays: Map<number, number>;
}

export interface ChaosWatch {
  readonly receipts: ReadonlyMap<string, SeenReceipt>;
  readonly kv: readonly SeenKv[];
  readonly routers: readonly RouterFigures[];
  /** Gaps of an undisturbed stream, straight from an engine of its own. */
  readonly controlGapsMs: readonly number[];
  /** Leases that expired on engines: KV that was never settled. */
  readonly leasesExpired: number;
  /** KV that engines hold now, and legs that instances count. Undefined if an engine or instance does not answer. */
  left(): Promise<{ heldKv: number; busyLegs: number; orphans: number } | undefined>;
  /** Reads the routers' figures once more and stops watching. */
  stop(): Promise<void>;
}

const KV_EVERY_MS = 250;
const FIGURES_EVERY_MS = 2_000;

interface EngineState {
  readonly kv_held: readonly { readonly id: string; readonly stage: string }[];
  readonly leases_expired: number;
  readonly running: number;
  readonly waiting: number;
}

export function watchCluster(cluster: Cluster, control: { readonly url: string; readonly body: string }): ChaosWatch {
  const over = new AbortController();
  const receipts = new Map<string, SeenReceipt>();
  const kv: SeenKv[] = [];
  const current = new Map<string, SeenKv>();
  const names = new Map<string, string>();
  const leases = new Map<string, number>();
  const controlGapsMs: number[] = [];
  const startMs = performance.now();
  const routers: RouterFigures[] = cluster.routers.map(({ process }) => ({
    router: process.name,
    heap: [],
    delays: new Map(),
  }));

  const pause = (ms: number): Promise<void> => sleep(ms, undefined, { signal: over.signal }).catch(() => {});

  async function watchReceipts(index: number): Promise<void> {
    const { process, control: client } = cluster.routers[index]!;
    while (!over.signal.aborted) {
      try {
        for await (const { receipt } of client.watchRequests({}, { signal: over.signal })) {
          if (receipt === undefined) continue;
          receipts.set(receipt.requestId, {
            requestId: receipt.requestId,
            router: process.name,
            errorCode: receipt.errorCode,
            error: receipt.error,
            fallbacks: receipt.fallbacks,
            legs: receipt.legs.map((leg) => ({
              legId: leg.legId,
              error: leg.error,
              prefill: names.get(leg.prefillInstanceId) ?? leg.prefillInstanceId,
              decode: names.get(leg.decodeInstanceId) ?? leg.decodeInstanceId,
            })),
          });
        }
      } catch {
        // The router is gone; the next poll asks its successor.
      }
      await pause(100);
    }
  }

  async function watchNames(): Promise<void> {
    while (!over.signal.aborted) {
      for (const { control: client } of cluster.routers) {
        const seen = await client.listInstances({}, { timeoutMs: 500, signal: over.signal }).catch(() => undefined);
        for (const { info } of seen?.instances ?? []) {
          const member = cluster.instances.find(({ grpcAddress }) => grpcAddress === info?.grpcAddress);
          if (member !== undefined) names.set(info!.instanceId, member.process.name);
        }
      }
      await pause(300);
    }
  }

  const engineState = async (name: string): Promise<EngineState | undefined> => {
    const engine = cluster.instances.find(({ process }) => process.name === name)!.engine();
    if (engine === undefined) return undefined;
    try {
      const answer = await fetch(`${engine.url}/sim/state`, { signal: AbortSignal.timeout(1_000) });
      const state = (await answer.json()) as EngineState;
      leases.set(`${name} ${engine.pid}`, state.leases_expired);
      return state;
    } catch {
      return undefined;
    }
  };

  async function watchKv(name: string): Promise<void> {
    while (!over.signal.aborted) {
      const state = await engineState(name);
      const nowMs = performance.now();
      const ready = new Set((state?.kv_held ?? []).filter(({ stage }) => stage === "ready").map(({ id }) => id));
      if (state !== undefined) {
        for (const [id, seen] of current) if (seen.instance === name && !ready.has(id)) current.delete(id);
        for (const id of ready) {
          const known = current.get(id);
          if (known !== undefined) known.lastSeenMs = nowMs;
          else {
            const seen = { instance: name, id, readySinceMs: nowMs, lastSeenMs: nowMs };
            current.set(id, seen);
            kv.push(seen);
          }
        }
      }
      await pause(KV_EVERY_MS);
    }
  }

  async function readFigures(index: number, last: Map<number, number>): Promise<void> {
    const figures = routers[index]!;
    try {
      const answer = await fetch(`${cluster.routers[index]!.url}/metrics`, { signal: AbortSignal.timeout(1_000) });
      const text = await answer.text();
      const heap = /^nodejs_heap_size_used_bytes ([\d.e+]+)$/m.exec(text)?.[1];
      if (heap !== undefined) figures.heap.push({ atS: (performance.now() - startMs) / 1000, bytes: Number(heap) });
      for (const [, bound, count] of text.matchAll(
        /^tandem_event_loop_delay_seconds_bucket\{le="([^"]+)"\} (\d+)$/gm,
      )) {
        const key = bound === "+Inf" ? Infinity : Number(bound);
        const before = last.get(key) ?? 0;
        // A restarted process counts from 0.
        const added = Number(count) >= before ? Number(count) - before : Number(count);
        figures.delays.set(key, (figures.delays.get(key) ?? 0) + added);
        last.set(key, Number(count));
      }
    } catch {
      // The router is down.
    }
  }

  const lastCounts = cluster.routers.map(() => new Map<number, number>());
  async function watchFigures(): Promise<void> {
    while (!over.signal.aborted) {
      await Promise.all(cluster.routers.map((_, index) => readFigures(index, lastCounts[index]!)));
      await pause(FIGURES_EVERY_MS);
    }
  }

  async function watchControl(): Promise<void> {
    const agent = new Agent({ keepAlive: true });
    while (!over.signal.aborted) {
      const ask = { path: "/v1/completions", body: control.body, stream: true };
      const record = await timedRequest(ask, { url: control.url, agent, hangMs: 60_000 });
      for (const gap of record.gapsMs) controlGapsMs.push(gap);
      if (record.ending !== "completed") await pause(500);
    }
    agent.destroy();
  }

  const decodes = cluster.instances.filter(({ role }) => role === "decode").map(({ process }) => process.name);
  const loops = [
    ...cluster.routers.map((_, index) => watchReceipts(index)),
    watchNames(),
    ...decodes.map(watchKv),
    watchFigures(),
    watchControl(),
  ];
  return {
    receipts,
    kv,
    routers,
    controlGapsMs,
    get leasesExpired() {
      return [...leases.values()].reduce((sum, count) => sum + count, 0);
    },
    async left() {
      let [heldKv, busyLegs, orphans] = [0, 0, 0];
      for (const { process } of cluster.instances) {
        const state = await engineState(process.name);
        if (state === undefined) return undefined;
        heldKv += state.kv_held.length;
        busyLegs += state.running + state.waiting;
      }
      const seen = await cluster.routers[0]!.control.listInstances({}, { timeoutMs: 1_000 }).catch(() => undefined);
      if (seen === undefined || seen.instances.length < cluster.instances.length) return undefined;
      for (const { load } of seen.instances) {
        busyLegs += (load?.running ?? 0) + (load?.reserved ?? 0);
        orphans += load?.kvOrphans ?? 0;
      }
      return { heldKv, busyLegs, orphans };
    },
    async stop() {
      over.abort();
      await Promise.all(loops);
    },
  };
}
