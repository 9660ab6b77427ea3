// Observes the deployment from outside during the faults: receipts, KV that engines hold, the routers' own figures.
import { setMaxListeners } from "node:events";
import { Agent } from "node:http";
import type { Leg, Receipt } from "#gen/tandem/router/v1/router_pb.js";
import { pause, systemClock } from "../../services/common/clock.ts";
import { timedRequest } from "../common/timed-request.ts";
import { findSeen, instancesSeen, type Cluster, type InstanceMember, type RouterMember } from "./cluster.ts";
import { stateOf, type SimState } from "./engine.ts";
import { processWatch } from "./process-watch.ts";

export interface SeenLeg extends Pick<Leg, "legId" | "error"> {
  /** Names of instances; empty if unknown. */
  readonly prefill: string;
  readonly decode: string;
}

export interface SeenReceipt extends Pick<Receipt, "errorCode" | "fallbacks"> {
  readonly router: string;
  readonly legs: readonly SeenLeg[];
}

/** KV on a decode engine that waits: for its next block, or to be claimed. */
export interface SeenKv {
  readonly instance: string;
  readonly id: string;
  readonly stage: string;
  readonly bytes: number;
  /** When its last block was seen. */
  readonly sinceMs: number;
  lastSeenMs: number;
}

export interface RouterFigures {
  readonly router: string;
  /** Heap in use, by time in seconds. */
  readonly heap: { readonly atS: number; readonly bytes: number }[];
  /** Cumulative counts of event-loop delays by upper bound in seconds, summed over its processes. */
  readonly delays: Map<number, number>;
}

export type ChaosWatch = ReturnType<typeof watchCluster>;

/** @param control Engine of its own, and the body of a request for an undisturbed stream from it. */
export function watchCluster(cluster: Cluster, control: { readonly url: string; readonly body: string }) {
  const over = new AbortController();
  setMaxListeners(0, over.signal); // One for each watch and call.
  /** By the id of the request. */
  const receipts = new Map<string, SeenReceipt>();
  const kv: SeenKv[] = [];
  const names = new Map<string, string>();
  const leases = new Map<string, number>();
  const controlGapsMs: number[] = [];
  const startMs = performance.now();
  const processes = processWatch();

  /** Until the watch stops. A process that is gone is asked again: a successor may answer. */
  async function repeat(everyMs: number, look: () => Promise<void>): Promise<void> {
    while (!over.signal.aborted) {
      await look().catch(() => {});
      await pause(systemClock, everyMs, over.signal);
    }
  }

  const nameOf = (instanceId: string): string => names.get(instanceId) ?? instanceId;
  async function readReceipts({ process, control: client }: RouterMember): Promise<void> {
    for await (const { receipt } of client.watchRequests({}, { signal: over.signal })) {
      if (receipt === undefined) continue;
      const { requestId, errorCode, fallbacks } = receipt;
      const legs = receipt.legs.map(({ legId, error, prefillInstanceId, decodeInstanceId }) => {
        return { legId, error, prefill: nameOf(prefillInstanceId), decode: nameOf(decodeInstanceId) };
      });
      receipts.set(requestId, { router: process.name, errorCode, fallbacks, legs });
    }
  }

  async function readNames(): Promise<void> {
    for (const router of cluster.routers) {
      const seen = await instancesSeen(router, 500);
      for (const member of cluster.instances) {
        const instanceId = findSeen(seen, member)?.info?.instanceId;
        if (instanceId !== undefined) names.set(instanceId, member.process.name);
      }
    }
  }

  async function readState({ process, engine }: InstanceMember): Promise<SimState | undefined> {
    const running = engine();
    const state = await stateOf(running);
    if (state !== undefined) leases.set(`${process.name} ${running!.pid}`, state.leases_expired);
    return state;
  }

  function watchKv(member: InstanceMember): Promise<void> {
    let current = new Map<string, SeenKv>();
    return repeat(250, async () => {
      const state = await readState(member);
      if (state === undefined) return;
      const nowMs = performance.now();
      const before = current;
      current = new Map();
      for (const { id, stage, bytes } of state.kv_held) {
        const last = before.get(id);
        const known = last?.stage === stage && last.bytes === bytes ? last : undefined;
        const seen = known ?? { instance: member.process.name, id, stage, bytes, sinceMs: nowMs, lastSeenMs: nowMs };
        if (known === undefined) kv.push(seen);
        seen.lastSeenMs = nowMs;
        current.set(id, seen);
      }
    });
  }

  function figuresOf({ process, url }: RouterMember): RouterFigures {
    const figures: RouterFigures = { router: process.name, heap: [], delays: new Map() };
    const last = new Map<number, number>();
    loops.push(
      repeat(2_000, async () => {
        const answer = await fetch(`${url}/metrics`, { signal: AbortSignal.timeout(1_000) });
        const text = await answer.text();
        const heap = /^nodejs_heap_size_used_bytes ([\d.e+]+)$/m.exec(text)?.[1];
        if (heap !== undefined) figures.heap.push({ atS: (performance.now() - startMs) / 1000, bytes: Number(heap) });
        const buckets = /^tandem_event_loop_delay_seconds_bucket\{le="([^"]+)"\} (\d+)$/gm;
        for (const [, bound, written] of text.matchAll(buckets)) {
          const [key, count] = [bound === "+Inf" ? Infinity : Number(bound), Number(written)];
          const before = last.get(key) ?? 0;
          // A restarted process counts from 0.
          figures.delays.set(key, (figures.delays.get(key) ?? 0) + (count >= before ? count - before : count));
          last.set(key, count);
        }
      }),
    );
    return figures;
  }

  async function readMemory(): Promise<void> {
    for (const { process } of [...cluster.routers, ...cluster.instances]) processes.sawMemory(process);
  }

  async function readAnswer({ process, url }: RouterMember): Promise<void> {
    const { name, pid } = process;
    const answered = await fetch(`${url}/livez`, { signal: AbortSignal.timeout(1_000) }).then(
      () => true,
      (error: Error) => error.name !== "TimeoutError", // A router that is gone refuses.
    );
    processes.sawAnswer(name, pid === process.pid ? pid : undefined, answered, performance.now());
  }

  async function watchControl(): Promise<void> {
    const agent = new Agent({ keepAlive: true });
    while (!over.signal.aborted) {
      const ask = { path: "/v1/completions", body: control.body, stream: true };
      const record = await timedRequest(ask, { url: control.url, agent, hangMs: 60_000 });
      for (const gap of record.gapsMs) controlGapsMs.push(gap);
      if (record.ending !== "completed") await pause(systemClock, 500, over.signal);
    }
    agent.destroy();
  }

  const loops = [
    ...cluster.routers.map((router) => repeat(100, () => readReceipts(router))),
    repeat(300, readNames),
    ...cluster.instances.filter(({ role }) => role === "decode").map(watchKv),
    repeat(500, readMemory),
    ...cluster.routers.map((router) => repeat(500, () => readAnswer(router))),
    watchControl(),
  ];
  return {
    receipts,
    kv,
    routers: cluster.routers.map(figuresOf),
    controlGapsMs,
    processes: processes.figures,
    /** KV that was never settled: its lease ran out on an engine. */
    get leasesExpired() {
      return [...leases.values()].reduce((sum, count) => sum + count, 0);
    },
    /** KV that engines hold now, and legs that instances count. Undefined if an engine or instance does not answer. */
    async left() {
      let [heldKv, busyLegs, orphans] = [0, 0, 0];
      for (const member of cluster.instances) {
        const state = await readState(member);
        if (state === undefined) return undefined;
        const { filling, ready, claimed } = state.kv_stages;
        heldKv += filling + ready + claimed;
        busyLegs += state.running + state.waiting;
      }
      const seen = await instancesSeen(cluster.routers[0]!);
      if (seen === undefined || seen.length < cluster.instances.length) return undefined;
      for (const { load } of seen) {
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
