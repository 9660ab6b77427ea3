// Does what the schedule says, to real processes and links, and writes down when each fault began and was healed.
import { setTimeout as sleep } from "node:timers/promises";
import type { Cluster, InstanceMember } from "./cluster.ts";
import type { Supervised } from "./process.ts";
import type { PlannedFault } from "./schedule.ts";

/** One fault as it was done. Times by performance.now(). */
export interface Fault extends PlannedFault {
  readonly beganMs: number;
  /** Undefined while it is held. */
  healedMs: number | undefined;
  /** Why it could not be done. Then nothing was. */
  skipped: string | undefined;
}

export interface Injector {
  readonly faults: readonly Fault[];
  /** Resolves when the last fault is healed. */
  run(plan: readonly PlannedFault[], startMs: number): Promise<void>;
}

const ENGINE_ANSWER_MS = 1_000;

export function createInjector(cluster: Cluster, onEvent: (fault: Fault, what: "began" | "healed") => void): Injector {
  const faults: Fault[] = [];

  async function inject(planned: PlannedFault): Promise<void> {
    const fault: Fault = { ...planned, beganMs: performance.now(), healedMs: undefined, skipped: undefined };
    faults.push(fault);
    onEvent(fault, "began");
    try {
      await perform(fault);
    } catch (error) {
      fault.skipped = (error as Error).message;
    }
    fault.healedMs = performance.now();
    onEvent(fault, "healed");
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
        return void signal(engineOf(instance!).pid, "SIGKILL");
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
        return tell(engineOf(instance!).url, fault.engineFault!);
      case "drain":
        return drained(instance!, durationMs);
    }
  }

  /** Until the next one was started. */
  async function killed(process: Supervised, how: NodeJS.Signals): Promise<void> {
    const { starts } = process;
    process.signal(how);
    for (let waitedMs = 0; process.starts === starts && waitedMs < 20_000; waitedMs += 20) await sleep(20);
    if (process.starts === starts) throw new Error(`${process.name} did not end after ${how}`);
  }

  async function drained(instance: InstanceMember, durationMs: number): Promise<void> {
    // By whichever router knows it; the instance itself tells the other.
    for (const { control } of cluster.routers) {
      const { instances } = await control.router.listInstances({}, { timeoutMs: 1_000 });
      const known = instances.find(({ info }) => info?.grpcAddress === instance.grpcAddress);
      if (known === undefined) continue;
      const instanceId = known.info!.instanceId;
      await control.router.drainInstance({ instanceId, reason: "chaos" }, { timeoutMs: 3_000 });
      await sleep(durationMs);
      await control.router.drainInstance({ instanceId, undrain: true }, { timeoutMs: 3_000 });
      return;
    }
    throw new Error("no router knows it");
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

async function frozen(pid: number, durationMs: number): Promise<void> {
  signal(pid, "SIGSTOP");
  await sleep(durationMs);
  signal(pid, "SIGCONT");
}

async function linked(link: InstanceMember["rpcLink"], mode: Parameters<InstanceMember["rpcLink"]["setMode"]>[0], durationMs: number): Promise<void> {
  link.setMode(mode);
  await sleep(durationMs);
  link.setMode({ kind: "pass" });
}

async function tell(url: string, fault: Readonly<Record<string, unknown>>): Promise<void> {
  const answer = await fetch(`${url}/sim/fault`, {
    method: "POST",
    body: JSON.stringify(fault),
    headers: { "content-type": "application/json" },
    signal: AbortSignal.timeout(ENGINE_ANSWER_MS),
  });
  if (answer.status !== 200) throw new Error(`the engine refuses the fault: ${answer.status}`);
}

/** Gone in the meantime: the fault has been done by another. */
function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch {
    // No such process.
  }
}

function pidOf(process: Supervised): number {
  if (process.pid === undefined) throw new Error("it does not run");
  return process.pid;
}

function engineOf(instance: InstanceMember): { pid: number; url: string } {
  const engine = instance.process.engine();
  if (engine === undefined) throw new Error("its engine does not run");
  return engine;
}
