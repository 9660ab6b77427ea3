// The only list of policies.
import { leastLoad } from "./least-load.ts";
import type { Policy } from "./policy.ts";
import { roundRobin } from "./round-robin.ts";

export type { Candidate, Policy } from "./policy.ts";

const POLICIES = {
  "round-robin": roundRobin,
  "least-load": leastLoad,
} as const satisfies Record<string, () => Policy>;

export type PolicyName = keyof typeof POLICIES;

export const POLICY_NAMES = Object.keys(POLICIES) as PolicyName[];

/** A policy with a memory of its own: each leg gets one, so that the choices for prefill and decode are not coupled. */
export function policyOf(name: PolicyName): Policy {
  return POLICIES[name]();
}
