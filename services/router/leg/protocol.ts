// The protocol of the two legs of one attempt, as a pure state machine: no I/O, no clock, no instances.
// Two orders. Decode first (P2P): reserve on decode, prefill, then start or abandon the reservation. Prefill first
// (NIXL): prefill, then reserve and start on decode together; a decode instance that refuses is replaced by another.
// Unpaired is prefill first without the prefill.
// The protocol keeps these promises, which test/router/leg/protocol.test.ts explores in every interleaving: it finishes
// exactly once, and at once when asked to stop; nothing starts without a successful prefill; a reservation is started,
// abandoned or cut; nothing is sent to a leg that has ended; and it always reaches `ended`. An unwanted answer is also
// abandoned. Only an instance that is silent for too long is cut, because a cut call costs a reset: once 1,000 resets
// are used up, nghttp2 treats more than 33 a second as an attack, and breaks the connection with all its calls.
// run.ts produces the events: the request's deadlines arrive as `unwanted`, an instance that is silent for too long as
// `decodeStalled` or `prefillFailed`.
import type { Traits } from "../../kv/connector.ts";
import type { Side } from "../pool/pool.ts";
import type { ServiceError } from "../../common/errors.ts";
import type { AnswerEnd } from "../request/request.ts";

/** The part of a connector's traits that decides the order. */
export interface LegTraits extends Pick<Traits, "decodeFirst" | "prefillCancellable"> {
  /** No prefill leg: the decode engine also computes the prompt. Only with connectors that allow it. */
  readonly unpaired?: boolean;
}

/** The part of prefill's answer with which decode starts. */
export interface Ticket {
  /** Opaque; empty if the connector needs no ticket. */
  readonly text: string;
  readonly cachedTokens: number | undefined;
  /** There was no prefill. */
  readonly unpaired?: boolean;
}

/** The part of a leg in which time passed or a failure happened. */
export type Phase = "reserve" | "prefill" | "transfer" | "decode";

export type LegOutcome =
  | { readonly kind: "completed"; readonly end: AnswerEnd }
  | { readonly kind: "cancelled" }
  /** `side` is the instance that failed. */
  | { readonly kind: "failed"; readonly error: ServiceError; readonly phase: Phase; readonly side: Side };

export type LegState =
  | { readonly kind: "idle" }
  /** Decode first: the reservation is sent but not answered. */
  | { readonly kind: "reserving" }
  | { readonly kind: "prefilling"; readonly reserved: boolean }
  /**
   * Prefill first: the search for an instance runs or, once `asked`, reservation and start are sent but not answered.
   */
  | { readonly kind: "opening"; readonly ticket: Ticket; readonly asked: boolean }
  /** Started, but nothing of the answer has arrived. */
  | { readonly kind: "transferring" }
  | { readonly kind: "streaming" }
  /** Finished for the client. The calls that are still open are being ended. */
  | {
      readonly kind: "settling";
      readonly prefill: "running" | "ended";
      readonly decode: "reserved" | "abandoned" | "ended";
    }
  | { readonly kind: "ended" };

export type LegEvent =
  | { readonly kind: "begin" }
  /** The search found an instance. */
  | { readonly kind: "decodeFound" }
  | { readonly kind: "reserved" }
  /** The instance has no slot for this leg; another one may. */
  | { readonly kind: "decodeRefused"; readonly error: ServiceError }
  /** The first bytes of the answer. Later bytes cause no event. */
  | { readonly kind: "decodeChunk" }
  /** The whole answer has arrived. */
  | { readonly kind: "decodeEnd"; readonly end: AnswerEnd }
  /** The leg failed, was lost, expired, or ended before its answer was complete. */
  | { readonly kind: "decodeFailed"; readonly error: ServiceError }
  /** The instance was silent for too long. The leg is still open there. */
  | { readonly kind: "decodeStalled"; readonly error: ServiceError }
  /** The instance ended an abandoned leg. */
  | { readonly kind: "decodeSettled" }
  | { readonly kind: "prefillDone"; readonly ticket: Ticket }
  | { readonly kind: "prefillFailed"; readonly error: ServiceError; readonly nothingSent: boolean }
  /** The client left, the request's time is up, or another leg of it failed. */
  | { readonly kind: "unwanted" }
  /** The instance did not end an abandoned decode leg in time. */
  | { readonly kind: "settleTimeout" };

export type LegEffect =
  /** Find a decode instance. `refusal`: the error of the previous one. */
  | { readonly kind: "seekDecode"; readonly refusal: ServiceError | undefined }
  /** Stop the search. */
  | { readonly kind: "endSearch" }
  /** Reserve a slot on the decode instance and, with a ticket, start at once. */
  | { readonly kind: "reserve"; readonly ticket: Ticket | undefined }
  | { readonly kind: "callPrefill" }
  | { readonly kind: "sendStart"; readonly ticket: Ticket }
  /** Abandon a reservation or a started answer. The instance ends the leg. */
  | { readonly kind: "sendAbandon"; readonly nothingSent: boolean; readonly reason: string }
  | { readonly kind: "cancelPrefill" }
  /** Cut the call to an instance that is silent for too long. */
  | { readonly kind: "cutDecode" }
  | { readonly kind: "finish"; readonly outcome: LegOutcome };

export interface Step {
  readonly state: LegState;
  readonly effects: readonly LegEffect[];
}

const ENDED: LegState = { kind: "ended" };
const UNPAIRED: Ticket = { text: "", cachedTokens: undefined, unpaired: true };
const CANCELLED: LegOutcome = { kind: "cancelled" };

export const IDLE: LegState = { kind: "idle" };

/** Late events, such as the end of a call that was cut, change nothing. */
export function step(traits: LegTraits, state: LegState, event: LegEvent): Step {
  switch (state.kind) {
    case "idle":
      return idle(traits, state, event);
    case "reserving":
      return reserving(state, event);
    case "prefilling":
      return prefilling(traits, state, event);
    case "opening":
      return opening(state, event);
    case "transferring":
    case "streaming":
      return started(state, event);
    case "settling":
      return settling(state, event);
    case "ended":
      return { state, effects: [] };
  }
}

function idle(traits: LegTraits, state: LegState, event: LegEvent): Step {
  if (event.kind === "begin") {
    if (traits.unpaired === true) return seek(UNPAIRED, undefined);
    return traits.decodeFirst
      ? { state: { kind: "reserving" }, effects: [{ kind: "reserve", ticket: undefined }] }
      : { state: { kind: "prefilling", reserved: false }, effects: [{ kind: "callPrefill" }] };
  }
  return event.kind === "unwanted" ? finished(CANCELLED) : { state, effects: [] };
}

function reserving(state: LegState, event: LegEvent): Step {
  switch (event.kind) {
    case "unwanted":
      // Abandoned rather than cut, because a broken call would make the instance ask about a prefill that never ran.
      return left(true, CANCELLED);
    case "reserved":
      return { state: { kind: "prefilling", reserved: true }, effects: [{ kind: "callPrefill" }] };
    case "decodeRefused":
    case "decodeFailed":
      return finished(failed(event.error, "reserve", "decode"));
    case "decodeStalled":
      return cut(failed(event.error, "reserve", "decode"));
    default:
      return { state, effects: [] };
  }
}

function prefilling(traits: LegTraits, state: LegState & { kind: "prefilling" }, event: LegEvent): Step {
  if (event.kind === "unwanted" || event.kind === "decodeFailed") {
    const outcome = event.kind === "unwanted" ? CANCELLED : failed(event.error, "prefill", "decode");
    const decodeHeld = state.reserved && event.kind === "unwanted";
    const effects: LegEffect[] = [];
    if (traits.prefillCancellable) {
      effects.push({ kind: "cancelPrefill" });
      // The router can't know whether the abort was in time, so the decode instance asks for the outcome.
      if (decodeHeld) effects.push(abandon(false, outcome));
    }
    effects.push(finish(outcome));
    // A prefill that can't be cancelled goes on, and the reservation must last until its outcome is known.
    const prefill = traits.prefillCancellable ? "ended" : "running";
    const decode = !decodeHeld ? "ended" : traits.prefillCancellable ? "abandoned" : "reserved";
    return { state: settle(prefill, decode), effects };
  }
  switch (event.kind) {
    case "prefillDone":
      return state.reserved
        ? { state: { kind: "transferring" }, effects: [{ kind: "sendStart", ticket: event.ticket }] }
        : seek(event.ticket, undefined);
    case "prefillFailed": {
      const outcome = failed(event.error, "prefill", "prefill");
      if (!state.reserved) return finished(outcome);
      return left(event.nothingSent, outcome);
    }
    default:
      return { state, effects: [] };
  }
}

function opening(state: LegState & { kind: "opening" }, event: LegEvent): Step {
  if (event.kind === "decodeFound") {
    return { state: { ...state, asked: true }, effects: [{ kind: "reserve", ticket: state.ticket }] };
  }
  if (event.kind === "reserved") return { state: { kind: "transferring" }, effects: [] };
  // The ticket is unused, so another decode instance can take it.
  if (event.kind === "decodeRefused") return seek(state.ticket, event.error);
  if (event.kind === "decodeStalled") return cut(failed(event.error, "reserve", "decode"));
  if (event.kind === "unwanted" && !state.asked) {
    return { state: ENDED, effects: [{ kind: "endSearch" }, finish(CANCELLED)] };
  }
  return started(state, event);
}

function started(state: LegState, event: LegEvent): Step {
  const phase: Phase = state.kind === "streaming" ? "decode" : "transfer";
  switch (event.kind) {
    case "unwanted":
      return left(false, CANCELLED);
    case "decodeChunk":
      return { state: { kind: "streaming" }, effects: [] };
    case "decodeEnd":
      return finished({ kind: "completed", end: event.end });
    case "decodeFailed":
      return finished(failed(event.error, phase, "decode"));
    case "decodeStalled":
      return cut(failed(event.error, phase, "decode"));
    default:
      return { state, effects: [] };
  }
}

function settling(state: LegState & { kind: "settling" }, event: LegEvent): Step {
  switch (event.kind) {
    case "prefillDone":
    case "prefillFailed": {
      if (state.decode !== "reserved") return { state: settle("ended", state.decode), effects: [] };
      const nothingSent = event.kind === "prefillFailed" && event.nothingSent;
      return { state: settle("ended", "abandoned"), effects: [abandon(nothingSent, CANCELLED)] };
    }
    case "decodeRefused":
    case "decodeEnd":
    case "decodeFailed":
    case "decodeSettled":
      return { state: settle(state.prefill, "ended"), effects: [] };
    case "settleTimeout":
      if (state.decode !== "abandoned") return { state, effects: [] };
      return { state: settle(state.prefill, "ended"), effects: [{ kind: "cutDecode" }] };
    default:
      return { state, effects: [] };
  }
}

function settle(prefill: "running" | "ended", decode: "reserved" | "abandoned" | "ended"): LegState {
  return prefill === "ended" && decode === "ended" ? ENDED : { kind: "settling", prefill, decode };
}

function failed(error: ServiceError, phase: Phase, side: Side): LegOutcome {
  return { kind: "failed", error, phase, side };
}

function finish(outcome: LegOutcome): LegEffect {
  return { kind: "finish", outcome };
}

function finished(outcome: LegOutcome): Step {
  return { state: ENDED, effects: [finish(outcome)] };
}

/** Starts the search for a decode instance that takes reservation and start together. */
function seek(ticket: Ticket, refusal: ServiceError | undefined): Step {
  return { state: { kind: "opening", ticket, asked: false }, effects: [{ kind: "seekDecode", refusal }] };
}

/** Finished, with an abandoned decode leg, which its instance ends at once or after it has settled the KV. */
function left(nothingSent: boolean, outcome: LegOutcome): Step {
  return {
    state: { kind: "settling", prefill: "ended", decode: "abandoned" },
    effects: [abandon(nothingSent, outcome), finish(outcome)],
  };
}

/** Finished, with the call of an open decode leg cut. Its instance settles the KV. */
function cut(outcome: LegOutcome): Step {
  return { state: ENDED, effects: [{ kind: "cutDecode" }, finish(outcome)] };
}

function abandon(nothingSent: boolean, outcome: LegOutcome): LegEffect {
  const reason = outcome.kind === "failed" ? outcome.error.code : outcome.kind;
  return { kind: "sendAbandon", nothingSent, reason };
}
