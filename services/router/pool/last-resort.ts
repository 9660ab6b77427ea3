// The registry may not take away the last instance that serves: an agent that restarts fails the checks of everything
// that is registered with it, and forgets it all if it has no disk. What this router hears from the instances itself
// weighs more then. An operator's maintenance mode holds in any case.
import type { Tracked } from "./tracked.ts";

/** Those of `tracked` that the registry doubts, that say they serve, and without which a side of a model had nobody. */
export function lastResorts(tracked: Iterable<Tracked>): ReadonlySet<Tracked> {
  const able = new Set<string>();
  const doubted: Tracked[] = [];
  for (const one of tracked) {
    if (!one.registered || !one.serves) continue;
    if (one.doubt === undefined) able.add(sideOf(one));
    else if (one.doubt.kind !== "maintenance") doubted.push(one);
  }
  return new Set(doubted.filter((one) => !able.has(sideOf(one))));
}

function sideOf({ info }: Tracked): string {
  return `${info.role} ${info.model}`;
}
