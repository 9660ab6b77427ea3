// Whose turn it is. Remembers the last instance by id and not by position, so that an instance that joins, leaves or is
// left out of one choice takes no other's turn.
import type { Candidate } from "./policy.ts";

/** Returns the first candidate after the last one returned, in the order of ids, from the start again at the end. */
export function turns(): (candidates: readonly Candidate[]) => Candidate {
  let last = "";
  return (candidates) => {
    const next = candidates.find((candidate) => candidate.instanceId > last) ?? candidates[0]!;
    last = next.instanceId;
    return next;
  };
}
