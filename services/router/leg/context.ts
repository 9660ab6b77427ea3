// What legs are run with: what all of a relay share, and what one attempt is to do.
import type { Clock } from "../../common/clock.ts";
import type { Live } from "../../common/config.ts";
import type { Deadlines } from "../../common/deadlines.ts";
import type { Instance } from "../pool/pool.ts";
import type { RelayMetrics } from "../request/metrics.ts";
import type { LegDraft } from "../request/receipt.ts";
import type { RelayLimits } from "../config.ts";
import type { RelayRequest } from "../request/request.ts";
import type { Books } from "./books.ts";
import type { AnswerPaces } from "./bounds.ts";
import type { InstanceLink } from "./instance-link.ts";
import type { LegEvent, LegTraits } from "./protocol.ts";

/** What all legs of a relay share. */
export interface LegContext {
  readonly books: Books;
  readonly linkTo: (instance: Instance) => InstanceLink;
  readonly limits: Live<RelayLimits>;
  /** For a decode instance to answer a reservation. */
  readonly reserveTimeoutMs: number;
  readonly paces: AnswerPaces;
  readonly deadlines: Deadlines;
  readonly clock: Clock;
  readonly metrics: RelayMetrics;
  /** Legs that have not ended. */
  readonly live: Pick<Set<LiveLeg>, "add" | "delete">;
}

export interface LiveLeg {
  /** Its owner has its answer or has left, and its instances have not ended it yet. */
  readonly settling: boolean;
}

/** One attempt: at which choice of which request, on which instances, under which id. */
export interface LegTask {
  readonly request: RelayRequest;
  readonly draft: LegDraft;
  readonly promptIndex: number | undefined;
  readonly sampleIndex: number;
  readonly traits: LegTraits;
  /** Undefined where the leg is unpaired. */
  readonly prefill: Instance | undefined;
  /** Undefined where it is picked after prefill. */
  readonly decode: Instance | undefined;
}

/** The runner, as the two sides of its leg see it. */
export interface SideRunner {
  dispatch(event: LegEvent): void;
  /** Where the time went so far. */
  where(): string;
}
