// The attempts of one choice that run: usually one. If its first byte is late, a second one runs beside it on another
// pair, the hedge, until the answer of either has begun. Work before the first byte is free to repeat, so another pair
// may as well answer; the attempt that delivers first wins, and the other one is settled like that of a client that left.
// Source: Dean and Barroso, The Tail at Scale, CACM 56(2), 2013: hedged requests, within a budget of a few percent.
import type { Live } from "../../common/config.ts";
import { asServiceError, FAILURES, type FailureCode, type ServiceError } from "../../common/errors.ts";
import type { Deadline } from "../../common/deadlines.ts";
import { SOONEST_LATE_MS, type Wait } from "../leg/bounds.ts";
import type { LegContext } from "../leg/context.ts";
import type { LegOutcome } from "../leg/protocol.ts";
import type { LegRun } from "../leg/run.ts";
import type { Exclusions, Place, Placer } from "../placement/placement.ts";
import type { Instance } from "../pool/pool.ts";
import type { RelayMetrics } from "../request/metrics.ts";
import type { RelayRequest } from "../request/request.ts";

export interface AttemptsContext extends LegContext {
  readonly metrics: RelayMetrics;
  readonly placer: Placer;
  readonly hedges: HedgeBudget;
  /** Whether the instances have capacity to spare, and most of them are above suspicion. */
  isCalm(): boolean;
}

/** The choice. */
export interface AttemptsOwner {
  /** @throws ServiceError if no pair is free */
  place(): Place;
  /** Makes a leg that has not begun. */
  legOn(place: Place): LegRun;
  /** A hedge is about to begin, because `part` of the first attempt is late. */
  hedged(part: Wait["part"]): void;
}

type Running =
  | { readonly kind: "none" }
  | { readonly kind: "one"; readonly leg: LegRun }
  /** The answer of neither has begun. */
  | { readonly kind: "two"; readonly first: LegRun; readonly hedge: LegRun };

const NONE: Running = { kind: "none" };

export class Attempts {
  readonly #context: AttemptsContext;
  readonly #request: RelayRequest;
  readonly #exclusions: Exclusions;
  readonly #owner: AttemptsOwner;
  #running: Running = NONE;
  /** When to see whether the attempt is late. Undefined if it is not to be hedged. */
  #due: Deadline | undefined;
  /** A choice is hedged once. */
  #hedged = false;

  constructor(context: AttemptsContext, request: RelayRequest, exclusions: Exclusions, owner: AttemptsOwner) {
    this.#context = context;
    this.#request = request;
    this.#exclusions = exclusions;
    this.#owner = owner;
  }

  get running(): boolean {
    return this.#running.kind !== "none";
  }

  /** @param isFresh Whether the client has nothing of the answer. */
  begin(place: Place, isFresh: boolean): void {
    const { limits, deadlines, clock } = this.#context;
    if (isFresh && !this.#hedged && mayHedge(this.#request, limits.current.hedgeRatio))
      this.#due = deadlines.watch(clock.nowMs() + SOONEST_LATE_MS, (nowMs) => this.#look(nowMs));
    const leg = this.#owner.legOn(place);
    this.#running = { kind: "one", leg };
    leg.begin();
  }

  unwanted(): void {
    const running = this.#running;
    this.#over();
    if (running.kind === "two") {
      this.#context.metrics.hedge("cancelled");
      running.first.unwanted();
      running.hedge.unwanted();
    } else if (running.kind === "one") running.leg.unwanted();
  }

  resume(): void {
    if (this.#running.kind === "one") this.#running.leg.resume();
  }

  where(): string {
    const running = this.#running;
    return running.kind === "none" ? "" : (running.kind === "one" ? running.leg : running.first).where();
  }

  isHedge(leg: LegRun): boolean {
    return this.#running.kind === "two" && this.#running.hedge === leg;
  }

  /** Prefill first: a hedge neither waits for a slot nor tries a second instance. */
  findDecode(hedge: LegRun, refusal: ServiceError | undefined): void {
    if (refusal !== undefined) return hedge.noDecode(refusal);
    let decode: Instance;
    try {
      decode = this.#decodeFor(hedge.task.prefill);
    } catch (thrown) {
      return hedge.noDecode(asServiceError(thrown));
    }
    hedge.decodeFound(decode);
  }

  /** The decode instance of the only attempt. */
  get decode(): Instance | undefined {
    return this.#running.kind === "one" ? this.#running.leg.decode : undefined;
  }

  /** The answer of `leg` has begun, or is complete without any bytes. */
  answeredBy(leg: LegRun): void {
    this.#due?.cancel();
    const running = this.#running;
    if (running.kind !== "two") return;
    const hedgeWon = running.hedge === leg;
    this.#running = { kind: "one", leg };
    this.#context.metrics.hedge(hedgeWon ? "won" : "lost");
    (hedgeWon ? running.first : running.hedge).outrun();
  }

  /** Whether it is one of the attempts that run. */
  has(leg: LegRun): boolean {
    const running = this.#running;
    return running.kind === "one"
      ? running.leg === leg
      : running.kind === "two" && (running.first === leg || running.hedge === leg);
  }

  /**
   * @param isFatal Whether its failure ends the choice.
   * @returns `all`: none runs now.
   */
  ended(leg: LegRun, outcome: LegOutcome, isFatal: boolean): "other goes on" | "all" {
    const running = this.#running;
    if (running.kind === "two") {
      if (outcome.kind === "completed") this.answeredBy(leg);
      else if (outcome.kind === "failed" && this.#otherGoesOn(running, leg, outcome, isFatal)) return "other goes on";
    }
    this.#over();
    return "all";
  }

  #otherGoesOn(
    { first, hedge }: Running & { kind: "two" },
    failed: LegRun,
    { error, side }: LegOutcome & { kind: "failed" },
    isFatal: boolean,
  ): boolean {
    const { metrics } = this.#context;
    const other = failed === first ? hedge : first;
    const ends = isFatal || (failed === first && endsBoth(error.code));
    this.#running = { kind: "one", leg: ends ? failed : other };
    if (ends) {
      metrics.hedge("cancelled");
      other.unwanted();
      return false;
    }
    metrics.hedge(failed === first ? "won" : "failed");
    const instance = side === "prefill" ? failed.task.prefill : failed.decode;
    if (instance !== undefined) this.#exclusions.exclude(instance, error.code === "leg_stalled" ? "wedged" : "failed");
    return true;
  }

  #over(): void {
    this.#due?.cancel();
    this.#running = NONE;
  }

  /** Starts a hedge if the attempt is late. Returns when to look again. */
  #look(nowMs: number): number | undefined {
    if (this.#running.kind !== "one") return undefined;
    const first = this.#running.leg;
    const { wait } = first;
    // It waits for a slot, or for a whole answer whose tokens don't show, which may take any time.
    if (wait === undefined) return nowMs + SOONEST_LATE_MS;
    const atMs = hedgeAtMs(wait, nowMs);
    if (atMs > nowMs) return atMs;
    const { metrics, hedges, isCalm } = this.#context;
    if (!isCalm()) {
      metrics.hedgeRefused("overload");
      return nowMs + wait.patienceMs;
    }
    const place = this.#placeElsewhere(first, wait);
    if (place === undefined) metrics.hedgeRefused("no_pair");
    else if (!hedges.take()) metrics.hedgeRefused("budget");
    else this.#hedge(first, place, wait);
    return undefined;
  }

  #hedge(first: LegRun, place: Place, { part }: Wait): void {
    this.#hedged = true;
    this.#owner.hedged(part);
    const hedge = this.#owner.legOn(place);
    this.#running = { kind: "two", first, hedge };
    hedge.begin();
  }

  /** A pair with another instance in place of the late one, and with a free slot; preferably of two other instances. */
  #placeElsewhere({ task, decode }: LegRun, { side, on }: Wait): Place | undefined {
    if (task.prefill !== undefined) this.#exclusions.exclude(task.prefill, "failed");
    if (decode !== undefined) this.#exclusions.exclude(decode, "failed");
    try {
      const place = this.#owner.place();
      const other = place.decode ?? this.#decodeFor(place.prefill);
      const isElsewhere = (side === "prefill" ? place.prefill : other) !== on;
      return isElsewhere && other.freeSlots > 0 ? place : undefined;
    } catch {
      return undefined; // No pair is free, and a hedge doesn't wait for one.
    }
  }

  #decodeFor(prefill: Instance | undefined): Instance {
    return this.#context.placer.placeDecode(prefill ?? this.#request.model, this.#exclusions);
  }
}

/** A request of several choices is not hedged: each of its late choices would cost a hedge. */
export function mayHedge({ strict, choices, prompts }: RelayRequest, ratio: number): boolean {
  return ratio > 0 && strict !== true && choices * prompts === 1;
}

/** When to look again whether an attempt needs a hedge. `nowMs`: it needs one now. */
export function hedgeAtMs({ sinceMs, patienceMs, moved, queuing }: Wait, nowMs: number): number {
  const lateMs = sinceMs + patienceMs;
  if (nowMs < lateMs) return lateMs;
  // Elsewhere it would wait at the end of a queue that is as long, and this one moves.
  return queuing && moved ? nowMs + patienceMs : nowMs;
}

/** Whether the failure of one of two attempts ends the choice, because the other one would fail in the same way. */
export function endsBoth(code: FailureCode): boolean {
  return FAILURES[code].retry === "never" && code !== "no_instance";
}

/** Hedges that are saved at most, so that the first clients of an instance that hangs are all saved. */
const SAVED = 16;

/** @param limits `hedgeRatio` is the share of requests that may be hedged. */
export function createHedgeBudget(limits: Live<{ readonly hedgeRatio: number }>) {
  let left = SAVED;
  return {
    /** Adds a request's share. */
    earn(): void {
      left = Math.min(SAVED, left + limits.current.hedgeRatio);
    },
    /** Takes one hedge out. Returns false if the budget is used up. */
    take(): boolean {
      if (left < 1 - 1e-9) return false;
      left -= 1;
      return true;
    },
  };
}

export type HedgeBudget = ReturnType<typeof createHedgeBudget>;
