// What a failure says of the instance that reported it.
import { ServiceError } from "../../common/errors.ts";
import type { FailureCode } from "../../common/errors.ts";
import type { Verdict } from "../pool/pool.ts";
import type { Side } from "./protocol.ts";

/** Refused before anything ran: a prefill that fails so has sent no KV. */
const NOTHING_SENT: ReadonlySet<string> = new Set<FailureCode>([
  "invalid_request",
  "engine_refused",
  "not_supported",
  "body_too_large",
  "unauthenticated",
  "permission_denied",
  "instance_busy",
  "instance_unavailable",
  "queue_full",
]);

/** Failures that speak against the instance itself, whatever the request was. */
const BLAMED: ReadonlySet<string> = new Set<FailureCode>([
  "instance_unavailable",
  "instance_lost",
  "engine_failed",
  "internal",
]);

export function sentNothing(error: ServiceError): boolean {
  return NOTHING_SENT.has(error.code);
}

/** What the end of a leg says of the instance that it ran on. */
export function verdictOf(outcome: string): Verdict {
  if (outcome === "completed") return "good";
  if (outcome === "leg_stalled") return "wedged";
  return BLAMED.has(outcome) ? "bad" : "none";
}

/** `error` as our client may see it: an instance's "cancelled" is not our client's. */
export function fromInstance(error: ServiceError, side: Side): ServiceError {
  if (error.code !== "cancelled") return error;
  return new ServiceError("instance_lost", `The ${side} instance broke off.`, { cause: error });
}

export function endedEarly(): ServiceError {
  return new ServiceError("engine_failed", "The decode instance ended its answer before its end.");
}
