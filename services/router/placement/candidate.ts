// An instance in the figures that policies compare.
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Member } from "../pool/pool.ts";
import type { Candidate } from "./policy.ts";

/** A leg that failed a moment ago counts as so many that run, and as so many prompt tokens that wait. */
const SUSPECT_LEGS = 4;
const SUSPECT_TOKENS = 2_048;

/** `member` in figures for a policy: what it told, brought up to this moment by what this router did since. */
export function candidateOf(member: Member): Candidate {
  const { load, legs } = member;
  const since = legs - member.legsAtLoad;
  // An instance that fails at once is always idle; without this it would draw every leg to itself.
  const { suspicion } = member;
  return {
    instanceId: member.info.instanceId,
    legs,
    // On decode these are prompts that still wait for their prefill elsewhere: no work there, and no reason to prefer another.
    queuedTokens:
      member.info.role === Role.DECODE
        ? 0
        : (load?.queuedTokens ?? 0) + member.placedTokens + Math.round(suspicion * SUSPECT_TOKENS),
    running:
      Math.max(legs, (load === undefined ? 0 : load.running + load.reserved) + since) +
      Math.round(suspicion * SUSPECT_LEGS),
    freeSlots: Math.max(0, (load?.freeSlots ?? 0) - since),
  };
}
