// The world of system.ts: what is true of one attempt, in the router, in both instances, in their engines and on the links
// between them.
import assert from "node:assert/strict";
import { NEW, type settlementOf, type stepDecode } from "../../../services/decode/protocol.ts";
import type { DecodeState, KnownOutcome } from "../../../services/decode/protocol.ts";
import { type OutcomeState, type stepOutcome, UNSEEN } from "../../../services/prefill/outcomes.ts";
import { IDLE, type LegState, type step } from "../../../services/router/leg/protocol.ts";
import type { Traits } from "../../../services/kv/connector.ts";

/** The machines as they are, or mutants of them. */
export interface Machines {
  readonly router: typeof step;
  readonly decode: typeof stepDecode;
  readonly settlement: typeof settlementOf;
  readonly outcome: typeof stepOutcome;
}

export interface SystemTraits extends Pick<Traits, "decodeFirst" | "prefillCancellable" | "abandoned"> {
  readonly unpaired?: boolean;
}

export type ToDecode = "reserve" | "start" | "abandon" | "deny" | "break";
export type ToRouter = "reserved" | "refused" | "chunk" | "end" | "failed" | "closed" | "broken";

/** One attempt. Each move changes a copy. */
export interface Attempt {
  router: LegState | { readonly kind: "dead" };
  finished: "no" | "completed" | "cancelled" | "failed";
  /** The client got bytes of it. */
  delivered: boolean;
  searching: boolean;
  refusals: number;
  /** Both ends of the decode call. */
  calling: boolean;
  serving: boolean;
  toDecode: readonly ToDecode[];
  toRouter: readonly ToRouter[];
  decode: DecodeState;
  /** The decode engine has the request; has taken the KV; has shown a token. */
  job: "none" | "waits" | "took" | "answers";
  settlement: "none" | "asks" | "frees" | "done";
  maybeTaken: boolean;
  ask: "none" | "on its way" | "waits" | KnownOutcome;
  /** The decode engine of the reservation still runs. */
  engine: boolean;
  /** The router's end of the prefill call, the order to prefill, and prefill's reply. */
  ordering: boolean;
  order: "none" | "on its way" | "there";
  reply: "none" | "done" | "failed" | "failed early";
  outcome: OutcomeState;
  work: "none" | "computing" | "pushing" | "over";
  succeeded: boolean;
  /** Another prefill instance is at the address. */
  replaced: boolean;
  kv: "none" | "on its way" | "held" | "kept" | "taken" | "freed" | "turned away" | "lost" | "gone";
  /** KV under this id is turned away from now on. */
  tombstone: boolean;
  debt: boolean;
}

export const START: Attempt = {
  router: IDLE,
  finished: "no",
  delivered: false,
  searching: false,
  refusals: 0,
  calling: false,
  serving: false,
  toDecode: [],
  toRouter: [],
  decode: NEW,
  job: "none",
  settlement: "none",
  maybeTaken: false,
  ask: "none",
  engine: true,
  ordering: false,
  order: "none",
  reply: "none",
  outcome: UNSEEN,
  work: "none",
  succeeded: false,
  replaced: false,
  kv: "none",
  tombstone: false,
  debt: false,
};

/** `must`: comes for sure, if nothing else comes first. `stop`: of the client or a clock. */
export type Kind = "must" | "may" | "fault" | "stop";
export type Change = (attempt: Attempt) => void;
export type Add = (kind: Kind, name: string, change: Change) => void;

export interface SharedMove {
  readonly kind: Kind;
  readonly name: string;
  readonly change: Change;
}

/** Nothing more has to come: what must be true then. */
export function checkEnd(at: Attempt): void {
  assert.ok(at.router.kind === "ended" || at.router.kind === "dead", `it stays ${at.router.kind} in the router`);
  if (at.router.kind === "ended") assert.notEqual(at.finished, "no", "the client is never served");
  assert.ok(at.decode.kind === "over" || at.decode.kind === "new", `its slot stays ${at.decode.kind}`);
  assert.ok(at.outcome.kind !== "running", "prefill never ends");
  if (at.debt) return;
  assert.ok(at.kv !== "held", "KV is left behind");
}

export function book(w: Attempt): void {
  w.debt = true;
  w.settlement = "done";
}

export function say(w: Attempt, word: ToRouter): void {
  if (w.calling) w.toRouter = [...w.toRouter, word];
}

export function tell(w: Attempt, word: ToDecode): void {
  if (w.serving) w.toDecode = [...w.toDecode, word];
}

/** Decode's end of the call is over: what is still on its way to it is not read. */
export function quit(w: Attempt): void {
  w.serving = false;
  w.toDecode = [];
}

/** The router's end of the decode call breaks. */
export function hangUp(w: Attempt): void {
  if (w.calling) tell(w, "break");
  w.calling = false;
  w.toRouter = [];
}

export function answer(w: Attempt, reply: Attempt["reply"]): void {
  if (w.ordering) w.reply = reply;
}
