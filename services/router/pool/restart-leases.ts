// Which instances may restart an engine that still serves. They ask in `Load.restart_wanted`. At most one instance of a
// role and model gets the grant, while all others of them serve, and at least one does: such a restart must not take
// away more than it cures. Several routers decide alike, since they choose by id. Where their views differ for a moment,
// no instance has the grant of all, and none begins; a grant that isn't used is taken back, so that they choose again.
import { type FleetView, type Seen, SIDES } from "./fleet.ts";

/** How long a granted restart may take to begin: until the views of all routers have become equal. */
const UNUSED_MS = 10_000;
/**
 * Between the end of one grant and the next one of the same role and model: the first must not be in force any more. Well
 * below UNUSED_MS, so that the grants of two routers overlap, however far apart their turns began.
 */
const SPACING_MS = 3_000;

/** The members of one role of a model. An instance that can't be used at all is none. */
export type LeaseMembers = readonly Pick<Seen, "instance" | "standing">[];

interface Lease {
  /** Undefined: none is out. */
  readonly instanceId: string | undefined;
  readonly sinceMs: number;
}

export class RestartLeases {
  /** By role and model. */
  readonly #leases = new Map<string, Lease>();

  /** Whether a grant is out, or was a moment ago. */
  get any(): boolean {
    return this.#leases.size > 0;
  }

  /** Ids of all instances that may restart their engine now. */
  granted({ models }: Pick<FleetView, "models">, nowMs: number): ReadonlySet<string> {
    const granted = new Set<string>();
    const keys = new Set<string>();
    for (const [name, model] of models) {
      for (const side of SIDES) {
        const key = `${side} ${name}`;
        keys.add(key);
        const instanceId = this.#decide(key, model[side], nowMs);
        if (instanceId !== undefined) granted.add(instanceId);
      }
    }
    for (const key of this.#leases.keys()) if (!keys.has(key)) this.#leases.delete(key);
    return granted;
  }

  #decide(key: string, members: LeaseMembers, nowMs: number): string | undefined {
    const lease = this.#leases.get(key);
    const askers = membersThatAsk(members);
    if (lease?.instanceId !== undefined) {
      const isUnused = nowMs - lease.sinceMs >= UNUSED_MS;
      if (askers.includes(lease.instanceId) && !isUnused) return lease.instanceId;
      this.#leases.set(key, { instanceId: undefined, sinceMs: nowMs });
      return undefined;
    }
    if (lease !== undefined && nowMs - lease.sinceMs < SPACING_MS) return undefined;
    const [instanceId] = askers;
    if (instanceId !== undefined) this.#leases.set(key, { instanceId, sinceMs: nowMs });
    else this.#leases.delete(key);
    return instanceId;
  }
}

/** Those that ask for a restart and may have it, in the order of their ids. */
function membersThatAsk(members: LeaseMembers): readonly string[] {
  const usable = members.filter(({ standing }) => standing.kind === "serves" || !NO_MEMBER.has(standing.reason));
  const out = usable.filter(({ standing }) => standing.kind !== "serves");
  // Out itself, it takes nothing away; but another one that is out must come back first.
  return usable
    .filter(({ instance }) => (instance.load?.restartWanted ?? "") !== "")
    .filter((one) => out.every((other) => other === one) && usable.length - out.length > (out.includes(one) ? 0 : 1))
    .map(({ instance }) => instance.instanceId)
    .sort();
}

/** It would not serve in any case. */
const NO_MEMBER: ReadonlySet<string> = new Set(["left", "denied", "unmatched"]);
