// The protocol of one decode leg, as a pure state machine: no I/O, no clock, no engine. It is the counterpart of
// router/leg/protocol.ts: reserved, then started or abandoned; once started, answered or left. It ends exactly once.
// It keeps these promises, which test/router/leg/system.test.ts explores together with the router's half and with
// prefill's outcome, over links that delay, reorder and lose: the KV that prefill pushed for the leg is taken by the
// answer, or settled, or booked; nothing is settled that the answer still needs; and the slot comes free.
// leg.ts produces the events and runs the effects.
import type { Reserve, Start } from "#gen/tandem/decode/v1/decode_pb.js";
import type { ServiceError } from "../common/errors.ts";
import type { Traits } from "../kv/connector.ts";

/** The part of a connector's traits that decides how KV is freed. */
export type KvTraits = Pick<Traits, "abandoned">;

export type DecodeState =
  | { readonly kind: "new" }
  /** The slot is held, and prefill may push KV. */
  | { readonly kind: "reserved" }
  /** The engine has the request. `tookKv`: and the KV. */
  | { readonly kind: "running"; readonly ticket: string; readonly tookKv: boolean }
  /** The answer is unwanted, but must go on until the engine has taken the KV. */
  | { readonly kind: "discarding"; readonly ticket: string }
  /** Over for the caller. The leg keeps its id until its KV is settled. */
  | { readonly kind: "settling" }
  | { readonly kind: "over" };

export type DecodeEvent =
  | { readonly kind: "reserve"; readonly reserve: Reserve }
  /** The reservation can't be granted. */
  | { readonly kind: "refused" }
  | { readonly kind: "start"; readonly start: Start }
  /** The ticket or the leg doesn't fit, and the engine was not asked. */
  | { readonly kind: "notStarted"; readonly error: ServiceError }
  | { readonly kind: "abandon"; readonly nothingSent: boolean }
  /** The caller has sent its last message. */
  | { readonly kind: "halfClosed" }
  /** A message that is not one of the protocol's. */
  | { readonly kind: "garbled"; readonly cause: unknown }
  /** The caller cancelled the call, or its connection broke. */
  | { readonly kind: "callBroken" }
  /** The caller missed its heartbeats. */
  | { readonly kind: "callerSilent" }
  | { readonly kind: "holdExpired" }
  /** The engine for which the leg was reserved is gone. */
  | { readonly kind: "engineChanged" }
  /** The engine has answered with something. */
  | { readonly kind: "tookKv" }
  | { readonly kind: "answerEnded" }
  /** `untouched`: the engine failed before it looked for the KV. */
  | { readonly kind: "answerFailed"; readonly error: ServiceError; readonly untouched: boolean }
  /** The engine goes on with other requests, but has forgotten this one. */
  | { readonly kind: "stuck"; readonly error: ServiceError }
  /** The instance stops. */
  | { readonly kind: "stopping" }
  /** None of the leg's KV is left, or the rest is booked as debt. */
  | { readonly kind: "settled" };

/** Ends of the call that are the same for every leg. */
export type DecodeEnding = "misused" | "garbled" | "router silent" | "hold expired" | "engine lost" | "stopping";

export type DecodeEffect =
  /** Grant a slot, or dispatch `refused`. */
  | { readonly kind: "admit"; readonly reserve: Reserve }
  /** Send the request to the engine, or dispatch `notStarted`. */
  | { readonly kind: "run"; readonly start: Start }
  /** Read on until the engine has taken the KV, and pass nothing on. */
  | { readonly kind: "discard" }
  | { readonly kind: "stopRun" }
  /**
   * Free the KV. Without a ticket the outcome of prefill is unknown, and prefill is asked. `maybeTaken`: the engine may
   * have taken the KV, and a drain would wait forever for KV that is gone.
   */
  | { readonly kind: "settle"; readonly ticket: string | undefined; readonly maybeTaken: boolean }
  /** The leg's id and slot are free. */
  | { readonly kind: "forget" }
  | { readonly kind: "endCall" }
  | { readonly kind: "failCall"; readonly why: DecodeEnding | ServiceError; readonly cause?: unknown };

export interface DecodeStep {
  readonly state: DecodeState;
  readonly effects: readonly DecodeEffect[];
}

export const NEW: DecodeState = { kind: "new" };
const RESERVED: DecodeState = { kind: "reserved" };
const SETTLING: DecodeState = { kind: "settling" };
const OVER: DecodeState = { kind: "over" };

const ASK: DecodeEffect = { kind: "settle", ticket: undefined, maybeTaken: false };
const FORGET: DecodeEffect = { kind: "forget" };
const STOP_RUN: DecodeEffect = { kind: "stopRun" };
const END_CALL: DecodeEffect = { kind: "endCall" };

/** Late events, such as a message to a leg that is over, change nothing. */
export function stepDecode(traits: KvTraits, state: DecodeState, event: DecodeEvent): DecodeStep {
  switch (state.kind) {
    case "new":
      return unreserved(event);
    case "reserved":
      return reserved(event);
    case "running":
      return running(traits, state, event);
    case "discarding":
      return discarding(state, event);
    case "settling":
      return event.kind === "settled" ? to(OVER, FORGET) : to(state);
    case "over":
      return to(state);
  }
}

function unreserved(event: DecodeEvent): DecodeStep {
  switch (event.kind) {
    case "reserve":
      return to(RESERVED, { kind: "admit", reserve: event.reserve });
    case "start":
    case "abandon":
    case "halfClosed":
    case "garbled":
      return to(OVER, misuse(event));
    case "callBroken":
      return to(OVER);
    default:
      return to(NEW);
  }
}

function reserved(event: DecodeEvent): DecodeStep {
  switch (event.kind) {
    case "refused":
      return to(OVER);
    case "start":
      return to({ kind: "running", ticket: event.start.ticket, tookKv: false }, { kind: "run", start: event.start });
    case "abandon":
      return event.nothingSent ? to(OVER, FORGET, END_CALL) : to(SETTLING, ASK, END_CALL);
    case "engineChanged":
      // Its KV went with the engine.
      return to(OVER, FORGET, fail("engine lost"));
    case "callBroken":
      return to(SETTLING, ASK);
    case "callerSilent":
      return to(SETTLING, ASK, fail("router silent"));
    case "holdExpired":
      return to(SETTLING, ASK, fail("hold expired"));
    case "stopping":
      return to(SETTLING, ASK, fail("stopping"));
    case "reserve":
    case "halfClosed":
    case "garbled":
      return to(SETTLING, ASK, misuse(event));
    default:
      return to(RESERVED);
  }
}

function running(traits: KvTraits, state: DecodeState & { kind: "running" }, event: DecodeEvent): DecodeStep {
  switch (event.kind) {
    case "tookKv":
      return to({ ...state, tookKv: true });
    case "answerEnded":
      return to(OVER, FORGET, END_CALL);
    case "answerFailed":
      return failed(state, !event.untouched, fail(event.error));
    case "notStarted":
      return failed(state, false, fail(event.error));
    case "stuck":
      return left(traits, state, fail(event.error));
    case "abandon":
      // At once, even if the engine has to take the KV first: the caller has nothing more to wait for.
      return left(traits, state, END_CALL);
    case "callBroken":
      return left(traits, state);
    case "reserve":
    case "start":
    case "garbled":
      return left(traits, state, misuse(event));
    case "stopping":
      return stopped(state, fail("stopping"));
    default:
      // A caller that is silent may be back, one that half-closed has said everything, and a dead engine fails the run.
      return to(state);
  }
}

function discarding(state: DecodeState & { kind: "discarding" }, event: DecodeEvent): DecodeStep {
  switch (event.kind) {
    case "tookKv":
      return to(OVER, STOP_RUN, FORGET);
    case "answerEnded":
      return to(OVER, FORGET);
    case "answerFailed":
      return failed(state, !event.untouched);
    case "stopping":
      return stopped(state);
    default:
      return to(state);
  }
}

type Started = DecodeState & { kind: "running" | "discarding" };

/** The answer is no longer wanted. */
function left(traits: KvTraits, state: DecodeState & { kind: "running" }, ...last: DecodeEffect[]): DecodeStep {
  const { ticket, tookKv } = state;
  // If only the engine itself can drop the KV, the engine must have received all of it before it is stopped.
  if (!tookKv && traits.abandoned === "drain") return to({ kind: "discarding", ticket }, { kind: "discard" }, ...last);
  return stopped(state, ...last);
}

function stopped(started: Started, ...last: DecodeEffect[]): DecodeStep {
  const { state, effects } = failed(started, true, ...last);
  return { state, effects: [STOP_RUN, ...effects] };
}

/** The run is over. KV that the engine may not have taken is settled. */
function failed(started: Started, maybeTaken: boolean, ...last: DecodeEffect[]): DecodeStep {
  if (started.kind === "running" && started.tookKv) return to(OVER, FORGET, ...last);
  return to(SETTLING, { kind: "settle", ticket: started.ticket, maybeTaken }, ...last);
}

function to(state: DecodeState, ...effects: DecodeEffect[]): DecodeStep {
  return { state, effects };
}

function fail(why: DecodeEnding | ServiceError): DecodeEffect {
  return { kind: "failCall", why };
}

function misuse(event: DecodeEvent): DecodeEffect {
  return event.kind === "garbled" ? { kind: "failCall", why: "garbled", cause: event.cause } : fail("misused");
}

/** Of a leg's prefill. */
export type KnownOutcome = "sent" | "nothing sent" | "unknown";

/**
 * How the KV of a leg is settled. `free`: by the connector's request to the engine. Releasing is harmless if nothing is
 * held; draining KV that never arrived, or is gone, would stall the engine.
 */
export function settlementOf(
  { abandoned }: KvTraits,
  outcome: KnownOutcome,
  maybeTaken: boolean,
): "nothing" | "free" | "book" {
  if (abandoned === "lease" || outcome === "nothing sent") return "nothing";
  if (abandoned === "release") return "free";
  return outcome === "sent" && !maybeTaken ? "free" : "book";
}
