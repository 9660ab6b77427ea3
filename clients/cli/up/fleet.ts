// The processes of a run as one: started together, and stopped in the order that disturbs running answers least.
import { endWithin, startChild, type Child, type ChildEvents, type ChildSpec } from "../../common/child.ts";
import { createOutput, type OutputSink } from "../../common/child-output.ts";

export interface Fleet {
  readonly children: readonly Child[];
  /**
   * Lets running answers finish: first the router, which takes no new request and waits for its streams; then the
   * instances, which have nothing left to do. Ends everything that is still running after `graceMs`.
   */
  drain(graceMs: number): Promise<void>;
  /** Ends everything within two seconds. Running answers get an error event if there is time for one. */
  stop(): Promise<void>;
  /** Ends everything at once. May be called while the process exits, because it waits for nothing. */
  kill(): void;
  /** Resolves when the log files are complete. */
  closeLogs(): Promise<void>;
}

export interface FleetOptions {
  readonly specs: readonly ChildSpec[];
  readonly events: ChildEvents;
  readonly logDir: string;
  /** Size of all log files together. */
  readonly logLimitBytes: number;
  readonly verbose: boolean;
  readonly colour: boolean;
  /** Prints one line of a child on the terminal. */
  print(name: string, line: string): void;
}

/**
 * After SIGINT, a router gives running answers one second, then ends them with an error; every process gets this long.
 */
const STOP_MS = 1_500;
/** A process may take this long after its grace period to close its connections. */
const CLOSE_MS = 1_000;

export function startFleet(options: FleetOptions): Fleet {
  const outputs: OutputSink[] = [];
  const children = options.specs.map((spec) => {
    const output = createOutput({
      name: spec.name,
      logFile: `${options.logDir}/${spec.name}.log`,
      logLimitBytes: options.logLimitBytes / options.specs.length,
      verbose: options.verbose,
      colour: options.colour,
      print: (line) => options.print(spec.name, line),
    });
    outputs.push(output);
    return startChild(spec, output, options.events);
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
    },
    kill() {
      for (const child of children) child.kill();
    },
    async closeLogs() {
      await Promise.all(outputs.map((output) => output.close()));
    },
  };
}
