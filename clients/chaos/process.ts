// The processes of the deployment: started as a user starts them, and restarted when they end, as by an orchestrator.
import { endWithin, startChild, TANDEM, type Child, type ChildSpec } from "../common/child.ts";
import { createChildLog } from "../common/child-log.ts";
import { commandLine, processTree } from "../loadgen/procfs.ts";

const RESTART_PAUSE_MS = 200;
const STOP_LIMIT_MS = 4_000;
/** More than any run writes, because the logs must show why a promise was broken. */
const LOG_LIMIT_BYTES = 4 * 1024 ** 3;

export interface SupervisedOptions extends Pick<ChildSpec, "name" | "role"> {
  readonly flags: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly logFile: string;
}

export interface Supervised {
  readonly child: Child;
  /** Ends the process permanently. */
  stop(): Promise<void>;
}

export function supervise({ name, role, flags, env, logFile }: SupervisedOptions): Supervised {
  const log = createChildLog({ file: logFile, limitBytes: LOG_LIMIT_BYTES });
  const spec: ChildSpec = {
    name,
    role,
    argv: [...TANDEM, role, ...flags],
    env: { ...process.env, TANDEM_LOG_FORMAT: "json", ...env },
    pauseMaxMs: RESTART_PAUSE_MS,
  };
  const child = startChild(spec, log.read, () => true);
  return {
    child,
    async stop() {
      child.signal("SIGCONT");
      await endWithin([child], "SIGINT", STOP_LIMIT_MS);
      await log.close();
    },
  };
}

export interface EngineProcess {
  readonly pid: number;
  readonly url: string;
}

/** Finds the engine process below a wrapper in /proc. */
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
