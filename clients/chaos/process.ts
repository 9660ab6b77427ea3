// The processes of the deployment: started as a user starts them, and started again when they are gone, as an orchestrator
// would.
import { endWithin, startChild, TANDEM, type Child, type ChildSpec } from "../common/child.ts";
import { createOutput } from "../common/child-output.ts";
import { commandLine, processTree } from "../loadgen/procfs.ts";

const RESTART_PAUSE_MS = 200;
const STOP_LIMIT_MS = 4_000;
/** More than any run writes: why a promise was broken stands in the logs. */
const LOG_LIMIT_BYTES = 4 * 1024 ** 3;

export interface SupervisedOptions extends Pick<ChildSpec, "name" | "role"> {
  readonly flags: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly logFile: string;
}

export interface Supervised {
  readonly child: Child;
  /** Ends it for good. */
  stop(): Promise<void>;
}

export function supervise({ name, role, flags, env, logFile }: SupervisedOptions): Supervised {
  const logging = { verbose: false, colour: false, print: () => {} };
  const output = createOutput({ name, logFile, logLimitBytes: LOG_LIMIT_BYTES, ...logging });
  const spec: ChildSpec = {
    name,
    role,
    argv: [...TANDEM, role, ...flags],
    env: { ...process.env, TANDEM_LOG_FORMAT: "json", ...env },
    pauseMaxMs: RESTART_PAUSE_MS,
  };
  const child = startChild(spec, output, { died: () => true });
  return {
    child,
    async stop() {
      child.signal("SIGCONT");
      await endWithin([child], "SIGINT", STOP_LIMIT_MS);
      await output.close();
    },
  };
}

export interface EngineProcess {
  readonly pid: number;
  readonly url: string;
}

/** Finds the engine under a wrapper, as the system shows it. */
export function engineUnder(wrapper: Child): () => EngineProcess | undefined {
  let known: (EngineProcess & { readonly under: number }) | undefined;
  return () => {
    if (wrapper.pid === undefined) return undefined;
    // Looking through all processes is dear, and the last one found is nearly always still it.
    if (known !== undefined && known.under === wrapper.pid && listenOf(known.pid) === known.url) return known;
    known = undefined;
    for (const pid of processTree(wrapper.pid).slice(1)) {
      const url = listenOf(pid);
      if (url !== undefined) return (known = { pid, url, under: wrapper.pid });
    }
    return undefined;
  };
}

/** Where an engine process serves. Undefined where it is none: its guardian, a shell, has the same arguments behind its own. */
function listenOf(pid: number): string | undefined {
  const args = commandLine(pid);
  if (!args.includes("engine") || args[0]?.endsWith("sh") === true) return undefined;
  const listen = args.find((arg) => arg.startsWith("--listen="));
  return listen === undefined ? undefined : `http://${listen.slice("--listen=".length)}`;
}
