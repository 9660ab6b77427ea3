// Which processes are ready, from what the router sees. An instance is ready when the router gives it legs. It is
// recognised by its pid, because its id changes with every start.
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Instance } from "#gen/tandem/router/v1/router_pb.js";
import type { Child } from "../../common/child.ts";

export interface ReadinessEvents {
  ready(child: Child, instance: Instance | undefined): void;
  /** Called when all children are ready for the first time and, if engines are adopted, a pair of them serves. */
  allReady(instances: readonly Instance[]): void;
}

export type UpReadiness = ReturnType<typeof createReadiness>;

export function createReadiness(children: () => readonly Child[], events: ReadinessEvents) {
  const readyPids = new Map<string, number>();
  let latest: readonly Instance[] = [];
  let announced = false;
  const isReady = (child: Child): boolean => child.pid !== undefined && readyPids.get(child.name) === child.pid;
  /** The roles of which no adopted engine serves. */
  const unadopted = (): string[] => {
    if (!children().some(({ role }) => role === "discover")) return [];
    const serving = new Set(latest.filter(({ eligible }) => eligible).map(({ info }) => info?.role));
    return ADOPTED.filter(([role]) => !serving.has(role)).map(([, name]) => name);
  };
  const instanceOf = (child: Child): Instance | undefined =>
    child.pid === undefined ? undefined : latest.find((instance) => instance.info?.pid === child.pid);

  return {
    /** Takes the instances that the router reports. */
    seen(instances: readonly Instance[]): void {
      latest = instances;
      for (const child of children()) {
        if (isReady(child) || child.pid === undefined) continue;
        const instance = instanceOf(child);
        if (isInstance(child) && instance?.eligible !== true) continue;
        readyPids.set(child.name, child.pid);
        events.ready(child, instance);
      }
      if (announced || !children().every(isReady) || unadopted().length > 0) return;
      announced = true;
      const own = children().map(instanceOf);
      const isAdopted = (instance: Instance): boolean => instance.eligible && !own.includes(instance);
      events.allReady([...own.filter((instance) => instance !== undefined), ...latest.filter(isAdopted)]);
    },
    /** Whether the child was ever ready, in its current process or an earlier one. */
    wasReady: (child: Child): boolean => readyPids.has(child.name),
    /** One line for each child or adopted role that isn't ready: its name and why. */
    missing: (): string[] => [
      ...children()
        .filter((child) => !isReady(child))
        .map((child) => `${child.name}: ${reason(child, instanceOf(child))}`),
      ...unadopted().map((name) => `${name}: no engine that pings serves yet`),
    ],
  };
}

const ADOPTED = [
  [Role.PREFILL, "prefill"],
  [Role.DECODE, "decode"],
] as const;

function reason(child: Child, instance: Instance | undefined): string {
  if (child.pid === undefined) return "not running, waiting for its restart";
  if (!isInstance(child)) return "does not answer yet";
  if (instance === undefined) return "has not registered with the router yet";
  return instance.reason || instance.load?.reason || "the router doesn't say why";
}

function isInstance({ role }: Child): boolean {
  return role === "prefill" || role === "decode";
}
