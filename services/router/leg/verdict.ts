// Judges a step of the protocol: which sides of the leg it ends, how they are counted, and whether it speaks against an
// instance or the pair. Pure; run.ts books the result.
import { ServiceError, type FailureCode } from "../../common/errors.ts";
import type { Verdict } from "../pool/breaker.ts";
import type { LegEnd } from "../request/metrics.ts";
import type { Side } from "../pool/pool.ts";
import type { Wait } from "./bounds.ts";
import type { Traits } from "../../kv/connector.ts";
import type { LegEffect, LegEvent, LegState, LegTraits } from "./protocol.ts";

/** One side of the leg has ended. */
export interface SideEnd {
  readonly outcome: LegEnd;
  /** Verdict on the instance. */
  readonly verdict: Verdict;
}

const COMPLETED: SideEnd = { outcome: "completed", verdict: "good" };
const CANCELLED: SideEnd = { outcome: "cancelled", verdict: "none" };

/** How `event` ended the prefill side; undefined if it did not. */
export function prefillEnd(traits: LegTraits, event: LegEvent, effects: readonly LegEffect[]): SideEnd | undefined {
  if (event.kind === "prefillDone") return COMPLETED;
  if (effects.some(({ kind }) => kind === "cancelPrefill")) return CANCELLED;
  if (event.kind !== "prefillFailed") return undefined;
  const { code } = event.error;
  if (code !== "leg_stalled") return { outcome: code, verdict: verdictOf(code) };
  // If prefill pushes the KV, decode may be at fault by not taking it, so this speaks only against the pair.
  return { outcome: code, verdict: traits.decodeFirst ? "none" : "wedged" };
}

/** How `event`, which arrived in the state `before`, ended the decode side; undefined if it did not. */
export function decodeEnd(
  traits: LegTraits,
  before: LegState,
  event: LegEvent,
  effects: readonly LegEffect[],
): SideEnd | undefined {
  switch (event.kind) {
    case "decodeEnd":
      return COMPLETED;
    case "decodeSettled":
      return CANCELLED;
    case "decodeRefused":
    case "decodeFailed":
      return { outcome: event.error.code, verdict: verdictOf(event.error.code) };
    case "decodeStalled":
      return { outcome: event.error.code, verdict: stallVerdict(traits, before) };
    default:
      return effects.some(({ kind }) => kind === "cutDecode") ? CANCELLED : undefined;
  }
}

/**
 * Between prefill and the first token a leg waits for its KV, and neither end shows which side causes the wait, so this
 * speaks only against the pair. An instance finds out itself whether its engine hangs.
 */
function stallVerdict(traits: LegTraits, before: LegState): Verdict {
  if (before.kind !== "transferring") return "wedged";
  return traits.unpaired === true ? "bad" : "none";
}

/** Verdict on the two instances as a pair. */
export function pairVerdict(effects: readonly LegEffect[]): Verdict {
  for (const effect of effects) {
    if (effect.kind !== "finish") continue;
    const { outcome } = effect;
    if (outcome.kind === "completed") return "good";
    if (outcome.kind === "cancelled") return "none";
    if (outcome.error.code === "kv_transfer_failed") return "bad";
    const kvIsLate = outcome.phase === "transfer" || outcome.phase === "prefill";
    if (outcome.error.code === "leg_stalled" && kvIsLate) return "wedged";
  }
  return "none";
}

/** Against whom it speaks that another attempt answered first. `pair`: with this verdict. */
export type OutrunVerdict =
  | { readonly against: "none" | "instance" }
  | { readonly against: "pair"; readonly verdict: "bad" | "wedged" };

/**
 * Judges what a leg waits for when another attempt has answered first. An instance that brought no leg forward since
 * is outrun as a whole; but where a decode engine that takes no KV holds up the prefill engine, only the pair can be
 * blamed. If only this leg is late, that speaks against the pair, and weakly.
 */
export function outrunVerdict(
  traits: Pick<Traits, "wedgedByPartner"> | undefined,
  wait: Wait,
  nowMs: number,
): OutrunVerdict {
  if (nowMs < wait.sinceMs + wait.patienceMs + wait.firstMs) return { against: "none" };
  if (!wait.moved)
    return wait.part === "prefill" && traits?.wedgedByPartner === true
      ? { against: "pair", verdict: "wedged" }
      : { against: "instance" };
  return wait.queuing ? { against: "none" } : { against: "pair", verdict: "bad" };
}

/** Failures that speak against the instance itself, whatever the request was. */
const BLAMED: ReadonlySet<FailureCode> = new Set<FailureCode>([
  "instance_unavailable",
  "instance_lost",
  "engine_failed",
  "internal",
]);

function verdictOf(code: FailureCode): Verdict {
  return BLAMED.has(code) ? "bad" : "none";
}

/** Whether a failed leg spoke against the instance or, if not, against the pair. */
export function accusedBy(code: FailureCode): "instance" | "pair" | "none" {
  if (BLAMED.has(code)) return "instance";
  return code === "kv_transfer_failed" ? "pair" : "none";
}

/** Errors from before anything ran: a prefill that fails with one of them has sent no KV. */
const NOTHING_SENT: ReadonlySet<FailureCode> = new Set<FailureCode>([
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

export function sentNothing(error: ServiceError): boolean {
  return NOTHING_SENT.has(error.code);
}

/** Converts an instance's error for the client: if an instance reports "cancelled", the client has not cancelled. */
export function fromInstance(error: ServiceError, side: Side): ServiceError {
  if (error.code !== "cancelled") return error;
  return new ServiceError("instance_lost", `The ${side} instance broke off.`, { cause: error });
}
