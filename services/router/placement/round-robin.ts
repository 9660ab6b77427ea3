// Round robin: each in turn, whatever its load. Right where requests are alike, and the yardstick for everything else.
import type { Policy } from "./policy.ts";
import { turns } from "./turns.ts";

export function roundRobin(): Policy {
  return { name: "round-robin", pick: turns() };
}
