// Two separate trials beside the random faults: an instance that is drained under load, and one that answers nothing.
import { Agent } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { timedRequest, type Ask } from "../common/timed-request.ts";
import { openLoop } from "../loadgen/arrivals.ts";
import { POISONED, type KnownAnswer } from "./asks.ts";
import type { Violation } from "./check.ts";
import { findSeen, instancesSeen, type Cluster, type InstanceMember } from "./cluster.ts";
import type { ChaosConfig } from "./config.ts";
import { failEngine } from "./engine.ts";
import type { RequestRecord } from "./load.ts";

export interface SceneOptions extends Pick<ChaosConfig, "hangMs" | "slackMs"> {
  readonly cluster: Cluster;
  readonly asks: readonly Ask[];
  readonly answers: readonly KnownAnswer[];
}

export interface SceneResult {
  readonly name: string;
  readonly figures: string;
  readonly violations: readonly Violation[];
}

/** No new leg may start on a drained instance after this long. */
const DRAIN_MS = 1_000;
/** Clients must have an answer after this long, even if an instance or its engine is silent. */
const ANSWER_MS = 3_000;
/** A stalled engine is found after 15 s, and restarts. */
const READY_MS = 45_000;
const CLIENTS = 8;
const CALL_MS = 10_000;

export async function drainUnderLoad(o: SceneOptions, streams: number): Promise<SceneResult> {
  const violations: Violation[] = [];
  const instance = o.cluster.instances.find(({ role }) => role === "decode")!;
  const running = sendMany(o, streams, 0, 1_500);
  await sleep(1_000);
  const router = o.cluster.routers[0]!;
  const { instanceId } = findSeen(await instancesSeen(router, CALL_MS), instance)!.info!;
  const drain = { instanceId, reason: "chaos: drained under load" };
  const { remaining } = await router.control.drainInstance(drain, { timeoutMs: CALL_MS });
  const drainedMs = performance.now();
  await sleep(DRAIN_MS);
  const before = await legsOn(o.cluster, instance);
  const results = await running;
  // Requests from here on must be served by the other instances.
  results.push(...(await sendMany(o, CLIENTS, streams, 0)));
  const late = (await legsOn(o.cluster, instance)) - before;
  for (const request of results) {
    if (request.ending === "completed" && request.text === o.answers[request.ask]!.text) continue;
    violations.push({ rule: "drain", what: `${request.ending} ${request.status}: ${request.message}`, request });
  }
  if (late !== 0) {
    const what = `${late} new legs started later than ${DRAIN_MS} ms after the drain`;
    violations.push({ rule: "drain", what });
  }
  await router.control.drainInstance({ instanceId, undrain: true }, { timeoutMs: CALL_MS });
  const lastMs = Math.max(...results.map(({ endMs }) => endMs)) - drainedMs;
  return {
    name: "drain under load",
    figures: `${results.length} streams, ${remaining} legs ran there when it was drained, ${results.length - completed(results)} lost, ${late} new legs after ${DRAIN_MS} ms, last stream ended after ${(lastMs / 1000).toFixed(1)} s`,
    violations,
  };
}

/**
 * @param part The part that falls silent: the engine, while its instance keeps answering, or the instance's process.
 */
export async function silentInstance(
  o: SceneOptions,
  role: "prefill" | "decode",
  part: "engine" | "process",
): Promise<SceneResult> {
  const rule = "silent instance";
  const violations: Violation[] = [];
  // The previous scene may have excluded the instance, and then it would get no requests.
  await o.cluster.ready(READY_MS);
  const instance = o.cluster.instances.find((member) => member.role === role)!;
  if (part === "process") instance.process.signal("SIGSTOP");
  else await failEngine(instance.engine()!, { kind: "stall", after_tokens: 0 });
  const limitMs = ANSWER_MS + o.slackMs;
  const round = async (number: number, may: readonly string[]): Promise<string> => {
    const records = await sendMany(o, CLIENTS, number * CLIENTS, 0);
    const times = records.map((request) => {
      const { ending, status, message, firstMs, endMs, sentMs } = request;
      // The time counts to the first byte, because the client chooses the length of the answer.
      const tookMs = (ending === "completed" ? (firstMs ?? endMs) : endMs) - sentMs;
      if (!may.includes(ending) || tookMs > limitMs) {
        const what = `${ending} ${status} after ${Math.round(tookMs)} ms, ${limitMs} ms at most: ${message}`;
        violations.push({ rule, what, request });
      }
      return tookMs;
    });
    return `${CLIENTS}: ${completed(records)} ok, slowest ${Math.round(Math.max(...times))} ms`;
  };
  const first = await round(0, ["completed"]);
  const next = await round(1, ["completed"]);
  if (part === "process") instance.process.signal("SIGCONT");
  await o.cluster.ready(READY_MS).catch((error: unknown) => {
    violations.push({ rule, what: `did not recover: ${(error as Error).message}` });
  });
  const name = `${role} ${part === "engine" ? "instance that answers nothing" : "instance whose process is stopped"}`;
  return { name, figures: `first ${first}; next ${next}`, violations };
}

function completed(records: readonly RequestRecord[]): number {
  return records.filter(({ ending }) => ending === "completed").length;
}

/** @param from Index of the first ask. All are sent within `rampMs`. */
async function sendMany(o: SceneOptions, count: number, from: number, rampMs: number): Promise<RequestRecord[]> {
  const agent = new Agent({ keepAlive: true });
  const sound = o.asks.slice(0, -POISONED);
  const streamed = sound.map((ask, index) => ({ ask, index })).filter(({ ask }) => ask.stream);
  const times = Array.from({ length: count }, (_, number) => (rampMs * number) / count);
  const records = await openLoop(times, async (number) => {
    const { ask, index } = streamed[(from + number) % streamed.length]!;
    const { url, process } = o.cluster.routers[number % o.cluster.routers.length]!;
    const answer = await timedRequest(ask, { url, agent, hangMs: o.hangMs });
    return { number, router: process.name, ask: index, ...answer };
  });
  agent.destroy();
  return records;
}

/** Number of legs that the routers ever gave the instance. */
async function legsOn({ routers }: Cluster, instance: InstanceMember): Promise<number> {
  const views = await Promise.all(routers.map((router) => instancesSeen(router, CALL_MS)));
  return views.reduce((sum, seen) => sum + Number(findSeen(seen, instance)?.legsTotal ?? 0n), 0);
}
