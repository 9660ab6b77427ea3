// The policies by name.
import type { PolicyName } from "../config.ts";
import { leastLoad } from "./least-load.ts";
import type { Policy } from "./policy.ts";
import { roundRobin } from "./round-robin.ts";

export type { Candidate, Policy } from "./policy.ts";

const POLICIES = {
  "round-robin": roundRobin,
  "least-load": leastLoad,
} as const satisfies Record<PolicyName, () => Policy>;

/** Makes a policy with a state of its own. Prefill and decode get one each, so that their choices are not coupled. */
export function policyOf(name: PolicyName): Policy {
  return POLICIES[name]();
}

/** Applies the policy that is configured at each choice. The policy keeps its state until the name changes. */
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
