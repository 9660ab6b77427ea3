// The registry may not take away the last instance that serves: an agent that restarts fails the checks of everything
// that is registered with it, and forgets it all if it has no disk. What this router hears from the instances itself
// weighs more then. An operator's maintenance mode holds in any case. Nor is the last one left out for a second's silence.
import type { Tracked } from "./tracked.ts";

/** Those of `tracked` that are doubted, that say they serve, and without which a side of a model had nobody. */
export function lastResorts(tracked: Iterable<Tracked>): ReadonlySet<Tracked> {
  const able = new Set<string>();
  const doubted: Tracked[] = [];
  for (const one of tracked) {
    if (!one.registered || !one.serves) continue;
    if (one.doubt === undefined && !one.hesitant) able.add(sideOf(one));
    else if (one.doubt?.kind !== "maintenance") doubted.push(one);
  }
  return new Set(doubted.filter((one) => !able.has(sideOf(one))));
}

function sideOf({ info }: Tracked): string {
  return `${info.role} ${info.model}`;
}
