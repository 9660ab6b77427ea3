// The engine of an instance, found in /proc or started here, and the calls by which an engine of Tandem's own shows its
// state and takes faults.
import { request } from "node:http";
import type { Child } from "../common/child.ts";
import { commandLine, processTree } from "../loadgen/procfs.ts";

export interface EngineProcess {
  readonly pid: number;
  /** A URL, or the path of a Unix socket. */
  readonly url: string;
}

/** Undefined while no engine runs below `wrapper`. */
export function engineUnder(wrapper: Pick<Child, "pid">): () => EngineProcess | undefined {
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
 * Where an engine process listens. Undefined for other processes, such as the guardian: a shell whose arguments include
 * the engine's.
 */
function listenOf(pid: number): string | undefined {
  const args = commandLine(pid);
  if (args[0]?.endsWith("sh") === true) return undefined;
  if (args.includes("engine")) {
    return args.find((arg) => arg.startsWith("--uds="))?.slice("--uds=".length);
  }
  if (!args.includes("serve")) return undefined;
  const valueOf = (flag: string): string | undefined =>
    args.includes(flag) ? args[args.indexOf(flag) + 1] : undefined;
  const port = valueOf("--port");
  return valueOf("--uds") ?? (port === undefined ? undefined : `http://127.0.0.1:${port}`);
}

export interface SimState {
  readonly kv_held: readonly { readonly id: string; readonly stage: string; readonly bytes: number }[];
  /** Of them and of KV in running sequences, by stage. */
  readonly kv_stages: Readonly<Record<"filling" | "ready" | "claimed", number>>;
  readonly leases_expired: number;
  readonly running: number;
  readonly waiting: number;
  readonly faults: readonly { readonly kind: string }[];
}

/** Undefined if the engine does not answer within a second. */
export async function stateOf(engine: EngineProcess | undefined): Promise<SimState | undefined> {
  if (engine === undefined) return undefined;
  try {
    const { status, text } = await call(engine, "GET", "/sim/state", "", 1_000);
    return status === 200 ? (JSON.parse(text) as SimState) : undefined;
  } catch {
    return undefined;
  }
}

/** Makes an engine fail. @param fault Body of `POST /sim/fault`. */
export async function failEngine(engine: EngineProcess, fault: Readonly<Record<string, unknown>>): Promise<void> {
  const { status, text } = await call(engine, "POST", "/sim/fault", JSON.stringify(fault), 2_000);
  if (status !== 200) throw new Error(`the engine rejects the fault: ${status} ${text}`);
}

function call(
  { url }: EngineProcess,
  method: string,
  path: string,
  body: string,
  timeoutMs: number,
): Promise<{ readonly status: number; readonly text: string }> {
  const to = url.startsWith("http") ? new URL(url) : undefined;
  const at = to === undefined ? { socketPath: url } : { host: to.hostname, port: to.port };
  return new Promise((resolve, reject) => {
    const signal = AbortSignal.timeout(timeoutMs);
    const sent = request({ ...at, method, path, signal, agent: false }, (answer) => {
      let text = "";
      answer.setEncoding("utf8").on("data", (piece: string) => (text += piece));
      answer.on("error", reject).on("end", () => resolve({ status: answer.statusCode!, text }));
    });
    sent.on("error", reject);
    sent.end(body);
  });
}
