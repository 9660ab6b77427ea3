// The processes of a run as one: started together, and stopped in the order that disturbs running answers least.
import { createChildLog, type ChildLog, type ChildLogOptions } from "../../common/child-log.ts";
import { endWithin, startChild, type Child, type ChildSpec, type Death } from "../../common/child.ts";

/**
 * After SIGINT, a router gives running answers one second, then ends them with an error; every process gets this long.
 */
const STOP_MS = 1_500;
/** A process may take this long after its grace period to close its connections. */
const CLOSE_MS = 1_000;

/**
 * @param logOf Where the output of a process goes.
 * @param died Called when a process ends by itself. Returns whether to restart it. `unprinted`: its last lines that were
 * not printed yet, oldest first.
 */
export function startFleet(
  specs: readonly ChildSpec[],
  logOf: (spec: ChildSpec) => ChildLogOptions,
  died: (child: Child, death: Death, unprinted: readonly string[]) => boolean,
) {
  const logs: ChildLog[] = [];
  const children = specs.map((spec) => {
    const log = createChildLog(logOf(spec));
    logs.push(log);
    return startChild(spec, log.read, (child, death) => died(child, death, log.takeUnprinted()));
  });
  const routers = children.filter((child) => child.role === "router");
  const instances = children.filter((child) => child.role !== "router");

  return {
    children,
    /**
     * Lets running answers finish: first the router, which takes no new request and waits for its streams; then the
     * instances, which have nothing left to do. Ends everything that is still running after `graceMs`.
     */
    async drain(graceMs: number): Promise<void> {
      const endMs = performance.now() + graceMs;
      await endWithin(routers, "SIGTERM", graceMs + CLOSE_MS);
      await endWithin(instances, "SIGTERM", Math.max(0, endMs - performance.now()) + CLOSE_MS);
    },
    /** Ends everything within two seconds. Resolves when the log files are complete. */
    async stop(): Promise<void> {
      await endWithin(children, "SIGINT", STOP_MS);
      await Promise.all(logs.map((log) => log.close()));
    },
    /** Ends everything at once. May be called while the process exits, because it waits for nothing. */
    kill(): void {
      for (const child of children) child.kill();
    },
  };
}
