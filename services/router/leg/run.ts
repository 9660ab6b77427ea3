// One attempt at one choice: runs the protocol of protocol.ts on two instances. Input from the instances, the owner and
// the clock becomes an event; the protocol takes one step; its effects become messages to the instances, then entries
// in the books, then calls to the owner. The leg may outlive its request, because its KV must be settled in any case.
import type { ServiceError } from "../../common/errors.ts";
import type { Instance } from "../pool/pool.ts";
import type { LegContext, LegTask, LiveLeg, SideOwner } from "./context.ts";
import { DecodeSide } from "./decode-side.ts";
import { PrefillSide } from "./prefill-side.ts";
import { IDLE, step, type LegEffect, type LegEvent, type LegOutcome, type LegState } from "./protocol.ts";
import { LegTimes } from "./times.ts";
import { decodeEnd, pairVerdict, prefillEnd } from "./verdict.ts";

/** The owner gets the answer. */
export interface LegOwner {
  /** Takes events of the answer, or the whole body. Returns false to hold the leg back until `resume`. */
  deliver(events: Buffer): boolean;
  /**
   * Picks a decode instance, at once or later, and calls the leg's `decodeFound` or `noDecode`.
   * @param refusal The error of the last one, which is `leg.decode`; undefined the first time.
   */
  findDecode(leg: LegRun, refusal: ServiceError | undefined): void;
  /** Ends the search: no decode instance is needed any more. */
  endSearch(leg: LegRun): void;
  /** Called once. The leg may go on settling. */
  finished(leg: LegRun, outcome: LegOutcome): void;
}

export class LegRun implements LiveLeg, SideOwner {
  readonly task: LegTask;
  readonly #context: LegContext;
  readonly #owner: LegOwner;
  readonly #times: LegTimes;
  readonly #prefill: PrefillSide;
  readonly #decode: DecodeSide;
  #state: LegState = IDLE;
  /** The current event, and those that it caused. */
  readonly #events: LegEvent[] = [];

  constructor(context: LegContext, task: LegTask, owner: LegOwner) {
    this.task = task;
    this.#context = context;
    this.#owner = owner;
    this.#times = new LegTimes(task.draft, task.traits, context.clock.nowMs());
    this.#prefill = new PrefillSide(context, task, this);
    this.#decode = new DecodeSide(context, task, this);
  }

  begin(): void {
    this.#context.live.add(this);
    this.#prefill.hold();
    if (this.task.decode !== undefined) this.#decode.hold(this.task.decode);
    this.dispatch({ kind: "begin" });
  }

  /** Called when the owner no longer wants the answer. */
  unwanted(): void {
    this.dispatch({ kind: "unwanted" });
  }

  /** Called with the instance that `findDecode` picked. */
  decodeFound(decode: Instance): void {
    this.#decode.on = decode;
    this.dispatch({ kind: "decodeFound" });
  }

  /** Called when `findDecode` found no instance. */
  noDecode(error: ServiceError): void {
    this.dispatch({ kind: "decodeFailed", error });
  }

  /** Called when the owner takes events again. */
  resume(): void {
    this.#decode.resume();
  }

  /** The decode instance that was picked last. */
  get decode(): Instance | undefined {
    return this.#decode.on;
  }

  /** Log probability of the token that prefill wrote, if its engine reports it. */
  get prefillLogprob(): number | undefined {
    return this.#prefill.firstLogprob;
  }

  get ended(): boolean {
    return this.#state.kind === "ended";
  }

  get settling(): boolean {
    return this.#state.kind === "settling";
  }

  where(): string {
    return this.#times.where(this.#context.clock.nowMs());
  }

  deliver(events: Buffer): boolean {
    return this.#owner.deliver(events);
  }

  // An effect may cause the next event at once. That event waits until the current step is done.
  dispatch(event: LegEvent): void {
    if (this.#events.push(event) > 1) return;
    try {
      for (let next: LegEvent | undefined = event; next !== undefined; next = this.#events[0]) {
        this.#take(next);
        this.#events.shift();
      }
    } finally {
      this.#events.length = 0;
    }
  }

  #take(event: LegEvent): void {
    const before = this.#state;
    if (before.kind === "ended") return;
    const { state, effects } = step(this.task.traits, before, event);
    this.#state = state;
    this.#times.note(before, event, this.#context.clock.nowMs());
    for (const effect of effects) this.#toInstances(effect);
    this.#toBooks(before, event, effects);
    for (const effect of effects) this.#toOwner(effect);
  }

  #toInstances(effect: LegEffect): void {
    switch (effect.kind) {
      case "reserve":
        return this.#decode.reserve(effect.ticket);
      case "callPrefill":
        return this.#prefill.call();
      case "sendStart":
        return this.#decode.start(effect.ticket);
      case "sendAbandon":
        return this.#decode.abandon(effect.reason, effect.nothingSent);
      case "cancelPrefill":
        return this.#prefill.cancel();
      case "cutDecode":
        return this.#decode.cut();
    }
  }

  /** Runs before the owner is called, because the owner's next attempt must see the updated books. */
  #toBooks(before: LegState, event: LegEvent, effects: readonly LegEffect[]): void {
    const { traits } = this.task;
    const prefill = prefillEnd(traits, event, effects);
    const decode = decodeEnd(traits, before, event, effects);
    const pair = pairVerdict(effects);
    if (prefill !== undefined) this.#prefill.release(prefill);
    if (decode !== undefined) this.#decode.release(decode);
    if (pair !== "none" && this.task.prefill !== undefined && this.#decode.on !== undefined)
      this.#context.books.pairEnded(this.task.prefill, this.#decode.on, pair);
    if (!this.ended) return;
    this.#prefill.release();
    this.#context.live.delete(this);
  }

  #toOwner(effect: LegEffect): void {
    if (effect.kind === "seekDecode") this.#owner.findDecode(this, effect.refusal);
    else if (effect.kind === "endSearch") this.#owner.endSearch(this);
    else if (effect.kind === "finish") this.#finish(effect.outcome);
  }

  #finish(outcome: LegOutcome): void {
    const { draft, request } = this.task;
    this.#times.ended(this.#context.clock.nowMs());
    if (outcome.kind === "completed") {
      const { promptTokens, completionTokens, cachedTokens } = outcome.end;
      draft.promptTokens = promptTokens;
      draft.completionTokens = completionTokens;
      if (cachedTokens !== undefined) draft.cachedTokens = cachedTokens;
      this.#context.metrics.completed(draft, request.stream);
      this.#context.paces.seen(this.#decode.on!, draft.transferMs + draft.decodeMs, completionTokens);
    } else {
      draft.error = outcome.kind === "failed" ? `${outcome.error.code}: ${outcome.error.message}` : outcome.kind;
    }
    this.#owner.finished(this, outcome);
  }
}
