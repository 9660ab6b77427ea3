// What the names of policies stand for.
import type { PolicyName } from "../config.ts";
import { leastLoad } from "./least-load.ts";
import type { Policy } from "./policy.ts";
import { roundRobin } from "./round-robin.ts";

export type { Candidate, Policy } from "./policy.ts";

const POLICIES = {
  "round-robin": roundRobin,
  "least-load": leastLoad,
} as const satisfies Record<PolicyName, () => Policy>;

/** A policy with a memory of its own: each leg gets one, so that the choices for prefill and decode are not coupled. */
export function policyOf(name: PolicyName): Policy {
  return POLICIES[name]();
}

/** The policy that is named at each choice. It keeps its memory until the name changes. */
export function namedPolicy(nameNow: () => PolicyName): Policy {
  let named = nameNow();
  let policy = policyOf(named);
  return {
    name: "named",
    pick(candidates) {
      const now = nameNow();
      if (now !== named) policy = policyOf((named = now));
      return policy.pick(candidates);
    },
  };
}
