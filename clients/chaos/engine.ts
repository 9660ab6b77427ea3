// The engine below a wrapper, found in /proc, and the calls by which an engine of Tandem's own shows its state and takes
// faults.
import type { Child } from "../common/child.ts";
import { commandLine, processTree } from "../loadgen/procfs.ts";

export interface EngineProcess {
  readonly pid: number;
  readonly url: string;
}

/** Undefined while no engine runs below `wrapper`. */
export function engineUnder(wrapper: Child): () => EngineProcess | undefined {
  let known: (EngineProcess & { readonly under: number }) | undefined;
  return () => {
    if (wrapper.pid === undefined) return undefined;
    // A search through all processes is expensive, and the last one found is nearly always still the engine.
    if (known !== undefined && known.under === wrapper.pid && listenOf(known.pid) === known.url) return known;
    known = undefined;
    for (const pid of processTree(wrapper.pid).slice(1)) {
      const url = listenOf(pid);
      if (url !== undefined) return (known = { pid, url, under: wrapper.pid });
    }
    return undefined;
  };
}

/**
 * URL of an engine process. Undefined for other processes, such as the guardian: a shell whose arguments include the
 * engine's.
 */
function listenOf(pid: number): string | undefined {
  const args = commandLine(pid);
  if (!args.includes("engine") || args[0]?.endsWith("sh") === true) return undefined;
  const listen = args.find((arg) => arg.startsWith("--listen="));
  return listen === undefined ? undefined : `http://${listen.slice("--listen=".length)}`;
}

export interface SimState {
  readonly kv_held: readonly { readonly id: string; readonly stage: string }[];
  readonly leases_expired: number;
  readonly running: number;
  readonly waiting: number;
  readonly faults: readonly { readonly kind: string }[];
}

/** Undefined if the engine does not answer within a second. */
export async function stateOf(engine: EngineProcess | undefined): Promise<SimState | undefined> {
  if (engine === undefined) return undefined;
  try {
    const answer = await fetch(`${engine.url}/sim/state`, { signal: AbortSignal.timeout(1_000) });
    return (await answer.json()) as SimState;
  } catch {
    return undefined;
  }
}

/** Makes an engine fail. @param fault Body of `POST /sim/fault`. */
export async function failEngine({ url }: EngineProcess, fault: Readonly<Record<string, unknown>>): Promise<void> {
  const signal = AbortSignal.timeout(2_000);
  const answer = await fetch(`${url}/sim/fault`, { method: "POST", body: JSON.stringify(fault), signal });
  if (answer.status !== 200) throw new Error(`the engine rejects the fault: ${answer.status}`);
}
