// How many legs of a model may run at once: what the decode instances that serve it can hold beside the legs of other
// routers, up to a limit. The instances' own words are the measure: they grant the reservations.
import type { Member } from "./pool/pool.ts";
import type { Pool, PoolSnapshot } from "./pool/pool.ts";

/** The sums are taken once a snapshot: they are asked for at every request. */
export function capacityOf(pool: Pick<Pool, "snapshot">, limit: () => number): (model: string) => number {
  let last: PoolSnapshot | undefined;
  const slots = new Map<string, number>();
  return (model) => {
    const { snapshot } = pool;
    if (snapshot !== last) {
      last = snapshot;
      slots.clear();
      for (const member of snapshot.decode) {
        if (member.eligible) slots.set(member.info.model, (slots.get(member.info.model) ?? 0) + roomOn(member));
      }
    }
    return Math.min(slots.get(model) ?? 0, limit());
  };
}

/** This router's own legs and what was free when it told. */
function roomOn({ info, load, legsAtLoad }: Member): number {
  return load === undefined ? info.slotLimit : Math.min(info.slotLimit, legsAtLoad + load.freeSlots);
}
