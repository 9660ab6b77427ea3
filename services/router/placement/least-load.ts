// Least load: picks the instance with the fewest prompt tokens to compute and, among equals, the fewest legs.
// Prefill time grows with tokens, so one 32k-token prompt outweighs forty short ones; on decode the tokens are all 0
// and the legs decide. "Always the minimum" would send a burst to one instance while its figures are stale. Therefore
// the figures include the legs placed since the last report, and equals take turns.
import type { Policy } from "./policy.ts";
import { Turns } from "./turns.ts";

export function leastLoad(): Policy {
  const turns = new Turns();
  return {
    name: "least-load",
    // One pass without copies, because this runs twice a request, over every instance.
    pick(candidates) {
      let least = { queuedTokens: Infinity, running: Infinity, legs: Infinity };
      for (const candidate of candidates) {
        const { queuedTokens, running, legs } = candidate;
        const order = queuedTokens - least.queuedTokens || running - least.running || legs - least.legs;
        if (order > 0) continue;
        if (order !== 0) {
          least = { queuedTokens, running, legs };
          turns.clear();
        }
        turns.offer(candidate);
      }
      return turns.take();
    },
  };
}
