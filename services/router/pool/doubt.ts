// When the router should rather doubt itself than its instances. Pure.
//
// Quorum of suspicion: if most instances fall silent together, the likeliest culprit is the observer, its network or a
// machine that all of them share. Taking them out would take everything out, at the moment when least can be spared.
// Panic threshold (Envoy, "panic threshold" of its load balancers): if mere suspicion would leave less than half of a
// side of a model, the rest could not carry the load, and fewer still would be left a moment later. A registry's word
// (`unlisted`) is overruled only where no other instance is left: a Consul agent that restarts fails the checks
// of all its services, and forgets them if it has no disk.
// What is certain is not doubted: a broken connection, and what an instance says of itself.
import { type Facts, standingOf } from "./standing.ts";

/** Silence that most instances share is not taken for their death for this long, on top of the usual bound. */
export const DOUBT_MS = 4_000;

/** Whether most of the instances that were heard a moment ago are suspect, and more than one. */
export function mostAreSuspect(known: Iterable<Pick<Facts, "registered" | "link" | "suspect">>): boolean {
  let [heard, suspect] = [0, 0];
  for (const one of known) {
    if (!one.registered || one.link.kind === "down") continue;
    heard += 1;
    if (one.suspect) suspect += 1;
  }
  return suspect >= 2 && suspect * 2 > heard;
}

/**
 * The instances that serve in spite of a suspicion. One that may answer wrongly is never among them.
 *
 * @param sideOf The side of a model that an instance belongs to, as a key.
 * @param doubtsItself Whether this router doubts itself.
 */
export function keptOf<F extends Facts>(
  known: Iterable<F>,
  sideOf: (one: F) => string,
  doubtsItself: boolean,
): ReadonlySet<F> {
  const sides = new Map<string, { sound: number; readonly suspected: F[]; readonly unlisted: F[] }>();
  const kept = new Set<F>();
  for (const one of known) {
    const key = sideOf(one);
    let side = sides.get(key);
    if (side === undefined) sides.set(key, (side = { sound: 0, suspected: [], unlisted: [] }));
    const standing = standingOf(one);
    if (standing.kind === "serves") side.sound += 1;
    else if (one.breaker.condemned) continue;
    else if (standing.reason === "unlisted") side.unlisted.push(one);
    else if (standing.reason === "suspect" || standing.reason === "failing" || standing.reason === "outrun") {
      side.suspected.push(one);
      if (doubtsItself && standing.reason === "suspect") kept.add(one);
    }
  }
  for (const { sound, suspected, unlisted } of sides.values()) {
    if (sound < suspected.length) for (const one of suspected) kept.add(one);
    if (sound === 0) for (const one of unlisted) kept.add(one);
  }
  return kept;
}
