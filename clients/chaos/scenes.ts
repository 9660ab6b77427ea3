// Two separate trials beside the random faults: an instance that is drained under load, and one that answers nothing.
import { Agent } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import type { KnownAnswer } from "./asks.ts";
import type { Violation } from "./check.ts";
import type { Cluster, InstanceMember } from "./cluster.ts";
import { timedRequest, type Ask } from "../common/timed-request.ts";
import type { RequestRecord } from "./load.ts";

export interface SceneOptions {
  readonly cluster: Cluster;
  readonly asks: readonly Ask[];
  readonly answers: readonly KnownAnswer[];
  readonly hangMs: number;
  readonly slackMs: number;
}

export interface SceneResult {
  readonly name: string;
  readonly figures: string;
  readonly violations: readonly Violation[];
}

/** No new leg may start on a drained instance after this long. */
const DRAIN_MS = 1_000;
/** Clients must have an answer or a typed error after this long, even if an instance is silent. */
const ANSWER_MS = 2_000;
const CLIENTS = 8;

export async function drainUnderLoad(o: SceneOptions, streams: number): Promise<SceneResult> {
  const violations: Violation[] = [];
  const instance = o.cluster.instances.find(({ role }) => role === "decode")!;
  const agent = new Agent({ keepAlive: true });
  const running = sendMany(o, agent, streams, 0, 1_500);
  await sleep(1_000);
  const { control } = o.cluster.routers[0]!;
  const instanceId = await idOf(o.cluster, instance);
  const { remaining } = await control.drainInstance(
    { instanceId, reason: "chaos: drained under load" },
    { timeoutMs: 10_000 },
  );
  const drainedMs = performance.now();
  await sleep(DRAIN_MS);
  const before = await legsOn(o.cluster, instance);
  const results = await running;
  // Requests from here on must be served by the other instances.
  results.push(...(await sendMany(o, agent, CLIENTS, streams, 0)));
  const after = await legsOn(o.cluster, instance);
  for (const record of results) {
    if (record.ending === "completed" && record.text === o.answers[record.ask]!.text) continue;
    violations.push({
      rule: "drain",
      what: `${record.ending} ${record.status}: ${record.message}`,
      request: record,
      faults: [],
    });
  }
  if (after !== before) {
    violations.push({
      rule: "drain",
      what: `${after - before} new legs started later than ${DRAIN_MS} ms after the drain`,
      faults: [],
    });
  }
  await control.drainInstance({ instanceId, undrain: true }, { timeoutMs: 10_000 });
  agent.destroy();
  const lastMs = Math.max(...results.map(({ endMs }) => endMs)) - drainedMs;
  const lost = results.filter(({ ending }) => ending !== "completed").length;
  return {
    name: "drain under load",
    figures: `${results.length} streams, ${remaining} legs ran there when it was drained, ${lost} lost, ${after - before} new legs after ${DRAIN_MS} ms, last stream ended after ${(lastMs / 1000).toFixed(1)} s`,
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
  const violations: Violation[] = [];
  // The previous scene may have excluded the instance, and then it would get no requests.
  await o.cluster.ready(15_000);
  const instance = o.cluster.instances.find((member) => member.role === role)!;
  if (part === "process") instance.process.signal("SIGSTOP");
  else
    await fetch(`${instance.engine()!.url}/sim/fault`, {
      method: "POST",
      body: JSON.stringify({ kind: "stall", after_tokens: 0 }),
    });
  const agent = new Agent({ keepAlive: true });
  const limitMs = ANSWER_MS + o.slackMs;
  const judge = (record: RequestRecord, must: "end" | "succeed"): number => {
    // The time counts to the first byte, because the client chooses the length of the answer.
    const tookMs = (record.ending === "completed" ? (record.firstMs ?? record.endMs) : record.endMs) - record.sentMs;
    const good = record.ending === "completed" || (must === "end" && record.ending === "error");
    if (!good || tookMs > limitMs) {
      const what = `${record.ending} ${record.status} after ${Math.round(tookMs)} ms, ${limitMs} ms at most: ${record.message}`;
      violations.push({ rule: "silent instance", what, request: record, faults: [] });
    }
    return tookMs;
  };
  const first = await sendMany(o, agent, CLIENTS, 0, 0);
  const firstMs = Math.max(...first.map((record) => judge(record, "end")));
  const second = await sendMany(o, agent, CLIENTS, CLIENTS, 0);
  const secondMs = Math.max(...second.map((record) => judge(record, "succeed")));
  agent.destroy();
  if (part === "process") instance.process.signal("SIGCONT");
  await o.cluster.ready(15_000).catch((error: unknown) => {
    violations.push({ rule: "silent instance", what: `did not recover: ${(error as Error).message}`, faults: [] });
  });
  const ok = (records: readonly RequestRecord[]): number =>
    records.filter(({ ending }) => ending === "completed").length;
  return {
    name: `${role} ${part === "engine" ? "instance that answers nothing" : "instance whose process is stopped"}`,
    figures: `first ${CLIENTS}: ${ok(first)} ok, slowest ${Math.round(firstMs)} ms; next ${CLIENTS}: ${ok(second)} ok, slowest ${Math.round(secondMs)} ms`,
    violations,
  };
}

/** @param from Index of the first ask. All are sent within `rampMs`. */
function sendMany(
  o: SceneOptions,
  agent: Agent,
  count: number,
  from: number,
  rampMs: number,
): Promise<RequestRecord[]> {
  const streamed = o.asks.map((ask, index) => ({ ask, index })).filter(({ ask }) => ask.stream);
  return Promise.all(
    Array.from({ length: count }, async (_, number) => {
      if (rampMs > 0) await sleep((rampMs * number) / count);
      const { ask, index } = streamed[(from + number) % streamed.length]!;
      const router = o.cluster.routers[number % o.cluster.routers.length]!;
      const answer = await timedRequest(ask, { url: router.url, agent, hangMs: o.hangMs });
      return { number, router: router.process.name, ask: index, ...answer };
    }),
  );
}

async function idOf(cluster: Cluster, instance: InstanceMember): Promise<string> {
  const { instances } = await cluster.routers[0]!.control.listInstances({}, { timeoutMs: 10_000 });
  return instances.find(({ info }) => info?.grpcAddress === instance.grpcAddress)!.info!.instanceId;
}

/** Number of legs that both routers ever gave the instance. */
async function legsOn(cluster: Cluster, instance: InstanceMember): Promise<number> {
  let sum = 0;
  for (const { control } of cluster.routers) {
    const { instances } = await control.listInstances({}, { timeoutMs: 10_000 });
    sum += Number(instances.find(({ info }) => info?.grpcAddress === instance.grpcAddress)?.legsTotal ?? 0n);
  }
  return sum;
}
