// Round robin: each instance in turn, whatever its load. It suits uniform requests, and is the baseline for other
// policies.
import type { Policy } from "./policy.ts";
import { Turns } from "./turns.ts";

export function roundRobin(): Policy {
  const turns = new Turns();
  return {
    name: "round-robin",
    pick(candidates) {
      for (const candidate of candidates) turns.offer(candidate);
      return turns.take();
    },
  };
}
