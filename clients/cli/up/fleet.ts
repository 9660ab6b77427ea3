// The processes of a run as one: started together, and stopped in the order that disturbs running answers least.
import { createChildLog, type ChildLog } from "../../common/child-log.ts";
import { endWithin, startChild, type Child, type ChildSpec, type Death } from "../../common/child.ts";

export interface Fleet {
  readonly children: readonly Child[];
  /**
   * Lets running answers finish: first the router, which takes no new request and waits for its streams; then the
   * instances, which have nothing left to do. Ends everything that is still running after `graceMs`.
   */
  drain(graceMs: number): Promise<void>;
  /**
   * Ends everything within two seconds. Running answers get an error event if there is time for one. Resolves when the
   * log files are complete.
   */
  stop(): Promise<void>;
  /** Ends everything at once. May be called while the process exits, because it waits for nothing. */
  kill(): void;
}

export interface FleetOptions {
  readonly specs: readonly ChildSpec[];
  readonly logDir: string;
  /** Size of all log files together. */
  readonly logLimitBytes: number;
  readonly verbose: boolean;
  readonly colour: boolean;
  /** Prints one line of a child on the terminal. */
  print(name: string, line: string): void;
  /**
   * Called when a process ends by itself. Returns whether to restart it.
   *
   * @param unprinted Its last lines that were not printed yet, oldest first. Warnings and errors are printed at once.
   */
  died(child: Child, death: Death, unprinted: readonly string[]): boolean;
}

/**
 * After SIGINT, a router gives running answers one second, then ends them with an error; every process gets this long.
 */
const STOP_MS = 1_500;
/** A process may take this long after its grace period to close its connections. */
const CLOSE_MS = 1_000;

export function startFleet(o: FleetOptions): Fleet {
  const logs: ChildLog[] = [];
  const children = o.specs.map((spec) => {
    const log = createChildLog({
      file: `${o.logDir}/${spec.name}.log`,
      limitBytes: o.logLimitBytes / o.specs.length,
      verbose: o.verbose,
      colour: o.colour,
      print: (line) => o.print(spec.name, line),
    });
    logs.push(log);
    return startChild(spec, log.read, (child, death) => o.died(child, death, log.takeUnprinted()));
  });
  const routers = children.filter((child) => child.role === "router");
  const instances = children.filter((child) => child.role !== "router");

  return {
    children,
    async drain(graceMs) {
      const endMs = performance.now() + graceMs;
      await endWithin(routers, "SIGTERM", graceMs + CLOSE_MS);
      await endWithin(instances, "SIGTERM", Math.max(0, endMs - performance.now()) + CLOSE_MS);
    },
    async stop() {
      await endWithin(children, "SIGINT", STOP_MS);
      await Promise.all(logs.map((log) => log.close()));
    },
    kill() {
      for (const child of children) child.kill();
    },
  };
}
