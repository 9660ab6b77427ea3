// Whether requests are placed by old news: the registry is away, or says of the last instances that serve that they
// don't. Asked once a request, and counted there: nothing degrades in silence.
import type { Metrics } from "../common/metrics.ts";
import type { RegistryHealth } from "../discovery/registry.ts";
import type { Member, Pool, PoolSnapshot } from "./pool/pool.ts";

/**
 * @param health Of the registry; undefined where it can't be away.
 * @returns Asked with `true` it doesn't count: the request is refused then, and nothing is done otherwise than planned.
 */
export function staleness(
  pool: Pick<Pool, "snapshot">,
  health: () => RegistryHealth | undefined,
  metrics: Metrics,
): (refusing?: boolean) => boolean {
  const fallbacks = metrics.counter("tandem_fallbacks_total", "What was done otherwise than planned.", ["reason"]);
  let last: PoolSnapshot | undefined;
  let overruled = false;
  return (refusing = false) => {
    const { snapshot } = pool;
    if (snapshot !== last) {
      last = snapshot;
      overruled = snapshot.prefill.some(isOverruled) || snapshot.decode.some(isOverruled);
    }
    const stale = overruled || health()?.up === false;
    if (stale && !refusing) fallbacks.inc({ reason: "stale-registry" });
    return stale;
  };
}

/** It gets legs in spite of what its registry says. */
function isOverruled({ eligible, reason }: Member): boolean {
  return eligible && reason !== "";
}
