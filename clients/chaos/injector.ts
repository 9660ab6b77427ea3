// Injects the scheduled faults into real processes and links, and records when each fault began and was healed.
import { setTimeout as sleep } from "node:timers/promises";
import type { Instance } from "#gen/tandem/router/v1/router_pb.js";
import { readiness } from "../client/readiness.ts";
import type { Child } from "../common/child.ts";
import { openLoop } from "../loadgen/arrivals.ts";
import { becomesTrue } from "./becomes-true.ts";
import { findSeen, instancesSeen, type Cluster, type InstanceMember, type RouterMember } from "./cluster.ts";
import { failEngine, stateOf, type EngineProcess } from "./engine.ts";
import type { LinkMode, Proxy } from "./proxy.ts";
import type { PlannedFault } from "./schedule.ts";
import { visit } from "./strangers.ts";

/** One injected fault. Times by performance.now(). */
export interface Fault extends PlannedFault {
  readonly beganMs: number;
  /** Undefined while the fault lasts. */
  healedMs: number | undefined;
  /** Why the fault could not be injected. Nothing was done then. */
  skipped: string | undefined;
}

const NOTICED_MS = 500;
/** A stalled engine is found after 15 s, prefill later if its prompts are long, and then it restarts. */
const WHOLE_LIMIT_MS = 60_000;
/** For a router that was restarted, or whose instance was, to take a drain back. */
const UNDRAIN_LIMIT_MS = 20_000;
/** An engine without requests doesn't use up its fault. */
const FAULT_LIMIT_MS = 30_000;

/** Injects all faults of `plan`, each at its time. Resolves when the last one is healed. */
export async function injectFaults(
  cluster: Cluster,
  plan: readonly PlannedFault[],
  onEvent: (fault: Fault, what: "began" | "healed") => void,
): Promise<readonly Fault[]> {
  const faults: Fault[] = [];

  async function inject(planned: PlannedFault): Promise<void> {
    const fault: Fault = { ...planned, beganMs: performance.now(), healedMs: undefined, skipped: undefined };
    const router = cluster.routers.find(({ process }) => process.name === fault.target);
    const instance = cluster.instances.find(({ process }) => process.name === fault.target);
    faults.push(fault);
    onEvent(fault, "began");
    try {
      if (wouldLeaveNone(fault)) throw new Error("it would leave no healthy process of its kind");
      if (fault.kind === "kill-consul") await killed(cluster.consul!, "SIGKILL");
      else if (router !== undefined) await hurtRouter(router, fault);
      else await hurt(instance!, fault);
      // No other process may have noticed yet.
      await sleep(NOTICED_MS);
      const isWhole = async (): Promise<boolean> =>
        router !== undefined ? isReady(router) : instance === undefined || isEligible(instance);
      if (!(await becomesTrue(WHOLE_LIMIT_MS, 100, isWhole)))
        throw new Error(`${fault.target} did not recover within ${WHOLE_LIMIT_MS} ms`);
    } catch (error) {
      fault.skipped = (error as Error).message;
    }
    fault.healedMs = performance.now();
    onEvent(fault, "healed");
  }

  /** The schedule leaves one healthy process, but a slow one may not have recovered yet. */
  function wouldLeaveNone({ index, target, kind }: Fault): boolean {
    if (kind === "kill-consul") return false;
    const lasting = faults.filter((fault) => fault.index !== index && fault.healedMs === undefined);
    const isHurt = (name: string): boolean => lasting.some((fault) => fault.target === name);
    const peers = [...cluster.routers, ...cluster.instances]
      .map(({ process }) => process)
      .filter(({ role }) => target.startsWith(role));
    return isHurt(target) || peers.every(({ name }) => name === target || isHurt(name));
  }

  /** Whether all running routers give legs to the instance's present process. */
  async function isEligible(instance: InstanceMember): Promise<boolean> {
    const views = await Promise.all(cluster.routers.map((router) => instancesSeen(router)));
    const running = views.filter((seen) => seen !== undefined);
    const gives = (seen: readonly Instance[]): boolean => {
      const known = findSeen(seen, instance);
      return known?.eligible === true && known.info?.pid === instance.process.pid;
    };
    return running.length > 0 && running.every(gives);
  }

  async function hurtRouter({ process, grpcAddress }: RouterMember, { kind, durationMs }: Fault): Promise<void> {
    switch (kind) {
      case "freeze-router":
        return frozen(process.pid, durationMs);
      case "clock-jump":
        return clockJumped(process.pid, durationMs);
      case "strangers":
        return visited(grpcAddress, durationMs);
      default:
        return killed(process, kind === "kill-router" ? "SIGKILL" : "SIGTERM");
    }
  }

  async function hurt(instance: InstanceMember, { kind, durationMs, engineFault }: Fault): Promise<void> {
    const { process: wrapper, rpcLink, kvLink } = instance;
    switch (kind) {
      case "kill-wrapper":
        return killed(wrapper, "SIGKILL");
      case "restart":
        return killed(wrapper, "SIGTERM");
      case "kill-engine":
        return engineEnded(instance, "SIGKILL");
      case "end-engine":
        return engineEnded(instance, "SIGTERM");
      case "clock-jump":
        return clockJumped(wrapper.pid, durationMs);
      case "strangers":
        return visited(instance.grpcAddress, durationMs);
      case "freeze-wrapper":
        return frozen(wrapper.pid, durationMs);
      case "freeze-engine":
        return frozen(instance.engine()?.pid, durationMs);
      case "drop-rpc":
      case "drop-kv-link":
        return linked(kind === "drop-rpc" ? rpcLink : kvLink!, { kind: "drop" }, durationMs);
      case "halve-rpc":
      case "halve-kv-link":
        return linked(kind === "halve-rpc" ? rpcLink : kvLink!, { kind: "halve" }, durationMs);
      case "delay-rpc":
        return linked(rpcLink, { kind: "delay", ms: 150 }, durationMs);
      case "engine-fault":
        return engineFailed(instance, engineFault!);
      case "drain":
        return drained(instance, durationMs);
      default:
        throw new Error(`${kind} is a fault of routers`);
    }
  }

  async function drained(instance: InstanceMember, durationMs: number): Promise<void> {
    if (!(await order(instance, { reason: "chaos" }))) throw new Error("no router knows the instance");
    await sleep(durationMs);
    // A router that was restarted meanwhile has to find the instance again.
    const isBack = await becomesTrue(UNDRAIN_LIMIT_MS, 250, () => order(instance, { undrain: true }));
    if (!isBack) throw new Error("no router took the drain back");
  }

  /** By any router that knows the instance; the instance itself reports to the other. Returns whether one did it. */
  async function order(instance: InstanceMember, how: { reason?: string; undrain?: boolean }): Promise<boolean> {
    for (const router of cluster.routers) {
      const seen = await instancesSeen(router, 2_000).catch(() => []);
      const instanceId = findSeen(seen, instance)?.info?.instanceId;
      if (instanceId === undefined) continue;
      const taken = await router.control.drainInstance({ instanceId, ...how }, { timeoutMs: 5_000 }).then(
        () => true,
        () => false,
      );
      if (taken) return true;
    }
    return false;
  }

  const timesMs = plan.map(({ atMs }) => atMs);
  await openLoop(timesMs, (index) => inject(plan[index]!));
  return faults;
}

async function isReady({ url }: RouterMember): Promise<boolean> {
  const answer = await readiness(url, AbortSignal.timeout(1_000)).catch(() => undefined);
  return answer?.ready === true;
}

/** Resolves when the next process was started. */
async function killed(process: Child, how: NodeJS.Signals): Promise<void> {
  const { restarts } = process;
  process.signal(how);
  if (!(await becomesTrue(20_000, 20, () => process.restarts > restarts)))
    throw new Error(`${process.name} did not end after ${how}`);
}

async function engineEnded(instance: InstanceMember, how: NodeJS.Signals): Promise<void> {
  const { pid } = engineOf(instance);
  signal(pid, how);
  await becomesTrue(20_000, 50, () => instance.engine()?.pid !== pid);
}

/** @param pid Undefined if the process does not run. */
async function frozen(pid: number | undefined, durationMs: number): Promise<void> {
  if (pid === undefined) throw new Error("the process does not run");
  signal(pid, "SIGSTOP");
  await sleep(durationMs);
  signal(pid, "SIGCONT");
}

/** @param pid Undefined if the process does not run. */
async function clockJumped(pid: number | undefined, durationMs: number): Promise<void> {
  if (pid === undefined) throw new Error("the process does not run");
  signal(pid, "SIGUSR2");
  await sleep(durationMs);
  signal(pid, "SIGUSR2");
}

async function visited(grpcAddress: string, durationMs: number): Promise<void> {
  const strangers = visit(grpcAddress);
  await sleep(durationMs);
  strangers.leave();
}

async function linked(link: Proxy, mode: LinkMode, durationMs: number): Promise<void> {
  link.setMode(mode);
  await sleep(durationMs);
  link.setMode({ kind: "pass" });
}

/** Resolves when the fault is used up, or its engine is gone. */
async function engineFailed(instance: InstanceMember, fault: Readonly<Record<string, unknown>>): Promise<void> {
  const engine = engineOf(instance);
  await failEngine(engine, fault);
  await becomesTrue(FAULT_LIMIT_MS, 250, async () => {
    if (instance.engine()?.pid !== engine.pid) return true;
    const state = await stateOf(engine);
    return state !== undefined && state.faults.every(({ kind }) => kind !== fault["kind"]);
  });
}

/** The process is already gone: another fault ended it. */
function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // No such process.
  }
}

function engineOf(instance: InstanceMember): EngineProcess {
  const engine = instance.engine();
  if (engine === undefined) throw new Error("its engine does not run");
  return engine;
}
