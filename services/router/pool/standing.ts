// Decides whether an instance gets legs and, if not, why. No other file decides that. There are four sources: the
// registry, the state that the instance reports (`Load.state`), the link to it, and how its legs end. If they disagree,
// the first objection in the order below decides. fleet.ts adds the reasons that depend on partners (`unproven`,
// `unmatched`).
import { type Load, State } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Objection } from "../../discovery/registry.ts";
import type { OpenBecause } from "./breaker.ts";

/** Why an instance gets no legs. */
export const REASONS = [
  "missing", // The deployment expects the instance, which is not there. Reserved; not used yet.
  "left", // It is no longer registered, and known only until its last leg has ended.
  "draining", // It reports that it drains, or an operator drained it.
  "starting", // It reports that it starts, or has not reported yet.
  "stopped", // It reports that it has stopped.
  "unreachable", // There is no connection to it, or a broken one.
  "denied", // It refuses this router's token or calls.
  "untrusted", // It has not proven who it is, and was told nothing.
  "silent", // It is connected, and has sent no heartbeat for 2 s.
  "failing", // It reports that it serves, but its legs fail or stall. A successful probe brings it back.
  "suspect", // It has sent no byte for 1.3 s. Its running legs go on.
  "outrun", // It made no progress with a leg, which another instance then answered. Its running legs go on.
  "unlisted", // It reports that it serves, but its registry reports it dead or gone.
  "unproven", // No probe has shown yet that it answers from the KV that it is sent, or one has shown that it doesn't.
  "unmatched", // It fits no instance of the other role: their facts differ.
] as const;

export type Reason = (typeof REASONS)[number];

export type Standing =
  /** `despite`: the reason that would take it out if another instance could do its work. */
  | { readonly kind: "serves"; readonly despite?: Reason; readonly text: string }
  /** `text` is one sentence for people, without addresses. `soon`: a first probe is about to decide. */
  | { readonly kind: "out"; readonly reason: Reason; readonly text: string; readonly soon?: boolean };

/** The control link to an instance. */
export type Link =
  | { readonly kind: "up" }
  | {
      readonly kind: "down";
      readonly reason: "unreachable" | "denied" | "untrusted" | "silent";
      readonly text: string;
    };

/** What is known about an instance on its own, without its partners. */
export interface Facts {
  readonly registered: boolean;
  /** Drained through this router, and not confirmed by the instance yet. */
  readonly drained: boolean;
  /** The objection of its registry. */
  readonly objection: Objection | undefined;
  readonly link: Link;
  /** Its last report; undefined before the first. */
  readonly load: Pick<Load, "state" | "reason"> | undefined;
  readonly breaker: {
    readonly because: OpenBecause | undefined;
    readonly text: string;
    /** Whether it must stay open whatever else is out: the answers may be wrong. */
    readonly condemned: boolean;
    readonly isUntried?: boolean;
  };
  /** No byte arrived over its link for longer than usual. */
  readonly suspect: boolean;
}

const SERVES: Standing = { kind: "serves", text: "" };

/**
 * @param kept Whether it serves in spite of a suspicion, because too few others are left (doubt.ts).
 */
export function standingOf(facts: Facts, kept = false): Standing {
  const { objection, link, load, breaker } = facts;
  if (!facts.registered) return out("left", "It is no longer registered.");
  if (facts.drained) return out("draining", "It was drained through this router.");
  if (objection?.kind === "maintenance") return out("draining", objection.reason);
  if (link.kind === "down") return out(link.reason, link.text);
  switch (load?.state) {
    case State.SERVING:
      break;
    case State.DRAINING:
      return out("draining", load.reason || "It is draining.");
    case State.STOPPED:
      return out("stopped", load.reason || "It has stopped.");
    default:
      return out("starting", load?.reason || "It is starting.");
  }
  const suspected = (reason: Reason, text: string, soon?: boolean): Standing =>
    kept
      ? { kind: "serves", despite: reason, text: `${text} It reports that it serves, and too few others do.` }
      : out(reason, text, soon);
  if (breaker.because === "failing") return suspected("failing", breaker.text, breaker.isUntried);
  if (facts.suspect) return suspected("suspect", "No byte has come from it for more than a second.");
  if (breaker.because === "outrun") return suspected("outrun", breaker.text, breaker.isUntried);
  if (objection !== undefined && objection.kind !== "lapsed") return suspected("unlisted", objection.reason);
  if (breaker.because === "unproven") return out("unproven", breaker.text, breaker.isUntried);
  return SERVES;
}

/** Whether its registry no longer vouches for it: it goes once it doesn't report that it serves either. */
export function isForsaken({ objection }: Pick<Facts, "objection">): boolean {
  return objection?.kind === "missing" || objection?.kind === "lapsed";
}

/** Whether the instance itself reports that it serves, whatever other sources say. */
export function claimsToServe({ registered, link, load }: Facts): boolean {
  return registered && link.kind === "up" && load?.state === State.SERVING;
}

export function out(reason: Reason, text: string, soon = false): Standing {
  return soon ? { kind: "out", reason, text, soon } : { kind: "out", reason, text };
}
