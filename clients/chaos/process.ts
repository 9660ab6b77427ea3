// One process of the deployment: started as a user starts it, and started again when it is gone, as an orchestrator
// would. Its standard input is ours, so that it ends with this process however that ends.
import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import { commandLine, processTree } from "../loadgen/procfs.ts";

/** `tandem` of the same build as this file. */
const TANDEM = [...process.execArgv, fileURLToPath(new URL(`../cli/main${extname(import.meta.url)}`, import.meta.url))];
const RESTART_PAUSE_MS = 200;

export interface EngineProcess {
  readonly pid: number;
  readonly url: string;
}

export interface Supervised {
  readonly name: string;
  readonly role: "router" | "prefill" | "decode" | "engine";
  /** Undefined while none runs. */
  readonly pid: number | undefined;
  readonly starts: number;
  /** The engine under a wrapper, as the system shows it. */
  engine(): EngineProcess | undefined;
  signal(signal: NodeJS.Signals): void;
  /** Ends it for good. */
  stop(): Promise<void>;
}

export interface SupervisedOptions {
  readonly name: string;
  readonly role: Supervised["role"];
  readonly flags: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly logFile: string;
}

export function supervise(o: SupervisedOptions): Supervised {
  let child: ChildProcess | undefined;
  let stopping = false;
  let starts = 0;
  let timer: NodeJS.Timeout | undefined;
  let ended = Promise.resolve();
  let known: (EngineProcess & { readonly under: number }) | undefined;

  function start(): void {
    starts++;
    const log = openSync(o.logFile, "a");
    const started = spawn(process.execPath, [...TANDEM, o.role, ...o.flags], {
      stdio: ["pipe", log, log],
      env: { ...process.env, TANDEM_LOG_FORMAT: "json", ...o.env, TANDEM_PARENT_PIPE: "1" },
    });
    closeSync(log);
    started.stdin!.on("error", () => {});
    child = started;
    ended = new Promise((resolve) => {
      started
        .once("error", () => {})
        .once("close", () => {
          child = undefined;
          if (!stopping) timer = setTimeout(start, RESTART_PAUSE_MS);
          resolve();
        });
    });
  }
  start();
  return {
    name: o.name,
    role: o.role,
    get pid() {
      return child?.pid;
    },
    get starts() {
      return starts;
    },
    engine() {
      if (child?.pid === undefined) return undefined;
      // Looking through all processes is dear, and the last one found is nearly always still it.
      if (known !== undefined && known.under === child.pid && listenOf(known.pid) === known.url) return known;
      known = undefined;
      for (const pid of processTree(child.pid).slice(1)) {
        const url = listenOf(pid);
        if (url !== undefined) return (known = { pid, url, under: child.pid });
      }
      return undefined;
    },
    signal: (signal) => void child?.kill(signal),
    async stop() {
      stopping = true;
      clearTimeout(timer);
      if (child === undefined) return;
      child.kill("SIGCONT");
      child.kill("SIGINT");
      const last = setTimeout(() => child?.kill("SIGKILL"), 4_000);
      await ended;
      clearTimeout(last);
    },
  };
}

/** Where an engine process serves. Undefined where it is none: its guardian, a shell, has the same arguments behind its own. */
function listenOf(pid: number): string | undefined {
  const args = commandLine(pid);
  if (!args.includes("engine") || args[0]?.endsWith("sh") === true) return undefined;
  const listen = args.find((arg) => arg.startsWith("--listen="));
  return listen === undefined ? undefined : `http://${listen.slice("--listen=".length)}`;
}
