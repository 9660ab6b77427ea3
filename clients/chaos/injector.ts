// Injects the scheduled faults into real processes and links, and records when each fault began and was healed.
import { setTimeout as sleep } from "node:timers/promises";
import { readiness } from "../client/readiness.ts";
import type { Cluster, InstanceMember } from "./cluster.ts";
import type { Child } from "../common/child.ts";
import type { PlannedFault } from "./schedule.ts";

/** One injected fault. Times by performance.now(). */
export interface Fault extends PlannedFault {
  readonly beganMs: number;
  /** Undefined while the fault lasts. */
  healedMs: number | undefined;
  /** Why the fault could not be injected. Nothing was done then. */
  skipped: string | undefined;
}

export interface Injector {
  readonly faults: readonly Fault[];
  /** Resolves when the last fault is healed. */
  run(plan: readonly PlannedFault[], startMs: number): Promise<void>;
}

const NOTICED_MS = 500;
const WHOLE_LIMIT_MS = 30_000;
const ENGINE_ANSWER_MS = 2_000;
/** An engine without requests doesn't use up its fault. */
const FAULT_LIMIT_MS = 20_000;

export function createInjector(cluster: Cluster, onEvent: (fault: Fault, what: "began" | "healed") => void): Injector {
  const faults: Fault[] = [];

  async function inject(planned: PlannedFault): Promise<void> {
    const fault: Fault = { ...planned, beganMs: performance.now(), healedMs: undefined, skipped: undefined };
    faults.push(fault);
    onEvent(fault, "began");
    try {
      if (wouldLeaveNone(fault)) throw new Error("it would leave no healthy process of its kind");
      await perform(fault);
      // No other process may have noticed yet.
      await sleep(NOTICED_MS);
      await whole(fault.target);
    } catch (error) {
      fault.skipped = (error as Error).message;
    }
    fault.healedMs = performance.now();
    onEvent(fault, "healed");
  }

  /** The schedule leaves one healthy process, but a slow one may not have recovered yet. */
  function wouldLeaveNone({ index, target }: Fault): boolean {
    const all = [...cluster.routers, ...cluster.instances].map(({ process }) => process.name);
    const hurt = new Set(
      faults.filter((fault) => fault.index !== index && fault.healedMs === undefined).map((fault) => fault.target),
    );
    if (hurt.has(target)) return true;
    return all.filter((name) => kindOf(name) === kindOf(target) && name !== target && !hurt.has(name)).length === 0;
  }

  /** Resolves when the target serves again in the view of all running routers. */
  async function whole(target: string): Promise<void> {
    const untilMs = performance.now() + WHOLE_LIMIT_MS;
    const router = cluster.routers.find(({ process }) => process.name === target);
    const instance = cluster.instances.find(({ process }) => process.name === target);
    while (performance.now() < untilMs) {
      const seen = router !== undefined ? await isReady(router.url) : await isEligible(instance!);
      if (seen) return;
      await sleep(100);
    }
    throw new Error(`${target} did not recover within ${WHOLE_LIMIT_MS} ms`);
  }

  async function isEligible(instance: InstanceMember): Promise<boolean> {
    let asked = 0;
    for (const { control } of cluster.routers) {
      const seen = await control.listInstances({}, { timeoutMs: 1_000 }).catch(() => undefined);
      if (seen === undefined) continue;
      asked++;
      const known = seen.instances.find(
        ({ info }) => info?.grpcAddress === instance.grpcAddress && info.pid === instance.process.pid,
      );
      if (known?.eligible !== true) return false;
    }
    return asked > 0;
  }

  async function perform(fault: Fault): Promise<void> {
    const { kind, target, durationMs } = fault;
    const router = cluster.routers.find(({ process }) => process.name === target);
    const instance = cluster.instances.find(({ process }) => process.name === target);
    if (kind === "kill-router") return killed(router!.process, "SIGKILL");
    if (kind === "restart-router") return killed(router!.process, "SIGTERM");
    const { process: wrapper, rpcLink, kvLink } = instance!;
    switch (kind) {
      case "kill-wrapper":
        return killed(wrapper, "SIGKILL");
      case "restart":
        return killed(wrapper, "SIGTERM");
      case "kill-engine":
        return engineKilled(instance!);
      case "freeze-wrapper":
        return frozen(pidOf(wrapper), durationMs);
      case "freeze-engine":
        return frozen(engineOf(instance!).pid, durationMs);
      case "drop-rpc":
      case "drop-kv-link":
        return linked(kind === "drop-rpc" ? rpcLink : kvLink!, { kind: "drop" }, durationMs);
      case "halve-rpc":
      case "halve-kv-link":
        return linked(kind === "halve-rpc" ? rpcLink : kvLink!, { kind: "halve" }, durationMs);
      case "delay-rpc":
        return linked(rpcLink, { kind: "delay", ms: 150 }, durationMs);
      case "engine-fault":
        return faultEngine(instance!, fault.engineFault!);
      case "drain":
        return drained(instance!, durationMs);
    }
  }

  /** Resolves when the next process was started. */
  async function killed(process: Child, how: NodeJS.Signals): Promise<void> {
    const { restarts } = process;
    process.signal(how);
    for (let waitedMs = 0; process.restarts === restarts && waitedMs < 20_000; waitedMs += 20) await sleep(20);
    if (process.restarts === restarts) throw new Error(`${process.name} did not end after ${how}`);
  }

  async function engineKilled(instance: InstanceMember): Promise<void> {
    const { pid } = engineOf(instance);
    signal(pid, "SIGKILL");
    for (let waitedMs = 0; instance.engine()?.pid === pid && waitedMs < 10_000; waitedMs += 50) await sleep(50);
  }

  async function drained(instance: InstanceMember, durationMs: number): Promise<void> {
    // By any router that knows the instance; the instance itself reports to the other.
    for (const { control } of cluster.routers) {
      const seen = await control.listInstances({}, { timeoutMs: 2_000 }).catch(() => undefined);
      const known = seen?.instances.find(({ info }) => info?.grpcAddress === instance.grpcAddress);
      if (known === undefined) continue;
      const instanceId = known.info!.instanceId;
      await control.drainInstance({ instanceId, reason: "chaos" }, { timeoutMs: 5_000 });
      await sleep(durationMs);
      await control.drainInstance({ instanceId, undrain: true }, { timeoutMs: 5_000 });
      return;
    }
    throw new Error("no router knows the instance");
  }

  return {
    faults,
    async run(plan, startMs) {
      const running: Promise<void>[] = [];
      for (const planned of plan) {
        await sleep(Math.max(0, startMs + planned.atMs - performance.now()));
        running.push(inject(planned));
      }
      await Promise.all(running);
    },
  };
}

function kindOf(name: string): string {
  return name.slice(0, name.lastIndexOf("-"));
}

function isReady(url: string): Promise<boolean> {
  return readiness(url, AbortSignal.timeout(1_000)).then(
    ({ ready }) => ready,
    () => false,
  );
}

async function frozen(pid: number, durationMs: number): Promise<void> {
  signal(pid, "SIGSTOP");
  await sleep(durationMs);
  signal(pid, "SIGCONT");
}

async function linked(
  link: InstanceMember["rpcLink"],
  mode: Parameters<InstanceMember["rpcLink"]["setMode"]>[0],
  durationMs: number,
): Promise<void> {
  link.setMode(mode);
  await sleep(durationMs);
  link.setMode({ kind: "pass" });
}

/** Resolves when the fault is used up, or its engine is gone. */
async function faultEngine(instance: InstanceMember, fault: Readonly<Record<string, unknown>>): Promise<void> {
  const { pid, url } = engineOf(instance);
  const answer = await fetch(`${url}/sim/fault`, {
    method: "POST",
    body: JSON.stringify(fault),
    headers: { "content-type": "application/json" },
    signal: AbortSignal.timeout(ENGINE_ANSWER_MS),
  });
  if (answer.status !== 200) throw new Error(`the engine rejects the fault: ${answer.status}`);
  const untilMs = performance.now() + FAULT_LIMIT_MS;
  while (performance.now() < untilMs && instance.engine()?.pid === pid) {
    const left = await fetch(`${url}/sim/state`, { signal: AbortSignal.timeout(ENGINE_ANSWER_MS) })
      .then((state) => state.json() as Promise<{ faults: readonly { kind: string }[] }>)
      .then(({ faults }) => faults.some(({ kind }) => kind === fault["kind"]))
      .catch(() => true);
    if (!left) return;
    await sleep(250);
  }
}

/** The process is already gone: another fault ended it. */
function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // No such process.
  }
}

function pidOf(process: Child): number {
  if (process.pid === undefined) throw new Error("the process does not run");
  return process.pid;
}

function engineOf(instance: InstanceMember): { pid: number; url: string } {
  const engine = instance.engine();
  if (engine === undefined) throw new Error("its engine does not run");
  return engine;
}
