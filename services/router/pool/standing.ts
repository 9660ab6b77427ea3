// Whether an instance gets legs, and if not, why: the only place that decides it. Four sources speak of an instance: its
// registry, its own word (`Load.state`), the link to it, and how legs on it end. Where they disagree, the first one below
// that is against it decides. What its partners add to that (`unproven`, `unmatched`) is in fleet.ts.
import { State } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Doubt } from "../../discovery/registry.ts";
import type { OpenBecause } from "./breaker.ts";

/**
 * Why an instance gets no legs.
 *
 * - `missing`: the deployment wants it and it is not there. Reserved; no instance has it yet.
 * - `left`: no longer registered; known only until its last leg has ended.
 * - `draining`, `starting`, `stopped`: it says so; `draining` also where an operator says so.
 * - `unreachable`: no connection to it, or a broken one. `denied`: it refuses this router's token.
 * - `silent`: connected, and no heartbeat for 2 s. `suspect`: for 1.3 s; its running legs go on.
 * - `failing`: it says that it serves, and legs on it fail or stall. A probe brings it back.
 * - `unlisted`: it says that it serves, and its registry reports it dead or gone.
 * - `unproven`: no probe has shown yet that it answers from the KV that it is sent, or one has shown that it does not.
 * - `unmatched`: it fits no instance of the other role: their facts differ.
 */
export const REASONS = [
  "missing",
  "left",
  "draining",
  "starting",
  "stopped",
  "unreachable",
  "denied",
  "silent",
  "failing",
  "suspect",
  "unlisted",
  "unproven",
  "unmatched",
] as const;

export type Reason = (typeof REASONS)[number];

export type Standing =
  /** `despite`: what would take it out if another instance of its side could do its work. */
  | { readonly kind: "serves"; readonly despite?: Reason; readonly text: string }
  /** `text` is one sentence for people, without addresses. */
  | { readonly kind: "out"; readonly reason: Reason; readonly text: string };

/** The control link to an instance. */
export type Link =
  | { readonly kind: "up" }
  | { readonly kind: "down"; readonly reason: "unreachable" | "denied" | "silent"; readonly text: string };

/** What is known of an instance by itself. */
export interface Facts {
  readonly registered: boolean;
  /** Drained through this router, and not confirmed by the instance yet. */
  readonly drained: boolean;
  /** What its registry has against it. */
  readonly doubt: Doubt | undefined;
  readonly link: Link;
  /** Its own word; undefined before the first load. */
  readonly state: State | undefined;
  /** Its own reason for `state`. */
  readonly stateText: string;
  readonly breaker: { readonly because: OpenBecause | undefined; readonly text: string };
  /** No byte came over its link for longer than usual. */
  readonly suspect: boolean;
}

const SERVES: Standing = { kind: "serves", text: "" };

/** @param lastResort Without it, a side of its model would have no instance: a mere suspicion does not take it out. */
export function standingOf(facts: Facts, lastResort = false): Standing {
  const { doubt, link, stateText, breaker } = facts;
  if (!facts.registered) return out("left", "It is no longer registered.");
  if (facts.drained) return out("draining", "It was drained through this router.");
  if (doubt?.kind === "maintenance") return out("draining", doubt.reason);
  if (link.kind === "down") return out(link.reason, link.text);
  switch (facts.state) {
    case State.SERVING:
      break;
    case State.DRAINING:
      return out("draining", stateText || "It is draining.");
    case State.STOPPED:
      return out("stopped", stateText || "It has stopped.");
    default:
      return out("starting", stateText || "It is starting.");
  }
  if (breaker.because === "failing") return out("failing", breaker.text);
  if (facts.suspect && !lastResort) return out("suspect", "No byte has come from it for more than a second.");
  if (doubt !== undefined) {
    if (!lastResort) return out("unlisted", doubt.reason);
    return {
      kind: "serves",
      despite: "unlisted",
      text: `${doubt.reason} It says that it serves, and no other instance does.`,
    };
  }
  if (breaker.because === "unproven") return out("unproven", breaker.text);
  return SERVES;
}

/** Whether it serves by its own word alone. */
export function claimsToServe({ registered, link, state }: Facts): boolean {
  return registered && link.kind === "up" && state === State.SERVING;
}

export function out(reason: Reason, text: string): Standing {
  return { kind: "out", reason, text };
}
