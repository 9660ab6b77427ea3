// Least load: the instance with the least to do, by prompt tokens first and by legs second.
// Prefill time grows with tokens, so one 32k-token prompt outweighs forty short ones; on decode the tokens are all 0
// and the legs decide. "Always the minimum" would send a burst to one instance while its figures are stale: the
// figures therefore include what was placed since they were told, and equals take turns.
import type { Candidate, Policy } from "./policy.ts";
import { turns } from "./turns.ts";

export function leastLoad(): Policy {
  const turn = turns();
  return {
    name: "least-load",
    pick(candidates) {
      let least: Candidate[] = [];
      for (const candidate of candidates) {
        const order = least.length === 0 ? -1 : compare(candidate, least[0]!);
        if (order < 0) least = [candidate];
        else if (order === 0) least.push(candidate);
      }
      return turn(least);
    },
  };
}

function compare(a: Candidate, b: Candidate): number {
  return a.queuedTokens - b.queuedTokens || a.running - b.running || a.legs - b.legs;
}
