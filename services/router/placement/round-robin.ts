// Round robin: each in turn, whatever its load. Right where requests are alike, and the yardstick for everything else.
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
