// How many legs may run at once: what the decode instances that serve offer, up to a limit.
import type { Pool, PoolSnapshot } from "./pool/pool.ts";

/** The sum is taken once a snapshot: it is asked for at every request. */
export function capacityOf(pool: Pick<Pool, "snapshot">, limit: () => number): () => number {
  let last: PoolSnapshot | undefined;
  let slots = 0;
  return () => {
    const { snapshot } = pool;
    if (snapshot !== last) {
      last = snapshot;
      slots = snapshot.decode.reduce((sum, { eligible, info }) => sum + (eligible ? info.slotLimit : 0), 0);
    }
    return Math.min(slots, limit());
  };
}
