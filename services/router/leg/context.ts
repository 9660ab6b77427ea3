// The context that all legs of a relay share, and the task of one attempt.
import type { Clock } from "../../common/clock.ts";
import type { Live } from "../../common/config.ts";
import type { Deadlines } from "../../common/deadlines.ts";
import type { LoopDelay } from "../../common/event-loop.ts";
import type { Instance, Pool } from "../pool/pool.ts";
import type { RelayMetrics } from "../request/metrics.ts";
import type { LegDraft } from "../request/receipt.ts";
import type { RelayLimits } from "../config.ts";
import type { RelayRequest } from "../request/request.ts";
import type { InstanceLink } from "./instance-link.ts";
import type { Paces } from "./paces.ts";
import type { LegEvent, LegTraits } from "./protocol.ts";

/** Counts and judges the legs of instances. The pool does that for users' requests; probes have books of their own. */
export type Books = Pick<Pool, "legStarted" | "legEnded" | "outrun" | "pairEnded" | "isWarm" | "prefilled">;

export interface LegContext {
  readonly books: Books;
  readonly linkTo: (instance: Instance) => InstanceLink;
  readonly limits: Live<RelayLimits>;
  /** Timeout for a decode instance to answer a reservation. */
  readonly reserveTimeoutMs: number;
  readonly paces: Paces;
  /** The event loop of this router. */
  readonly loop: LoopDelay;
  readonly deadlines: Deadlines;
  readonly clock: Clock;
  readonly metrics: Pick<RelayMetrics, "leg" | "completed" | "kvBytes" | "interTokenMs">;
  /** Legs that have not ended. */
  readonly live: Set<LiveLeg>;
  /** Called when a leg has left `live`. */
  onLegEnded(): void;
}

export interface LiveLeg {
  /** Its owner has its answer or has left, but its instances have not ended it yet. */
  readonly settling: boolean;
}

/** One attempt: its choice, request, instances and id. */
export interface LegTask {
  readonly request: RelayRequest;
  readonly draft: LegDraft;
  readonly promptIndex: number | undefined;
  readonly sampleIndex: number;
  readonly traits: LegTraits;
  /** Undefined if the leg is unpaired. */
  readonly prefill: Instance | undefined;
  /** Undefined if it is picked after prefill. */
  readonly decode: Instance | undefined;
}

/** The leg, as its two sides see it. */
export interface SideOwner {
  dispatch(event: LegEvent): void;
  /** Passes events of the answer on. Returns false to get no more until `resume`. */
  deliver(events: Buffer): boolean;
  /** Where the time went so far: "reserve 1 ms, prefill 210 ms, transfer 12 ms". */
  where(): string;
}
