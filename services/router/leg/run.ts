// One attempt at one choice: runs the protocol of protocol.ts on two instances. Input from the instances, the owner and
// the clock becomes an event; the protocol takes one step; its effects become messages to the instances, then entries
// in the books, then calls to the owner. The leg may outlive its request, because its KV must be settled in any case.
import type { ServiceError } from "../../common/errors.ts";
import { traitsOf } from "../../kv/index.ts";
import type { Instance, Side } from "../pool/pool.ts";
import type { LegDraft } from "../request/receipt.ts";
import { estimateTokens } from "../request/request.ts";
import type { LegContext, LegTask, LiveLeg, SideOwner } from "./context.ts";
import type { Wait } from "./bounds.ts";
import { DecodeSide } from "./decode-side.ts";
import { PrefillSide } from "./prefill-side.ts";
import {
  IDLE,
  step,
  type LegEffect,
  type LegEvent,
  type LegOutcome,
  type LegState,
  type LegTraits,
  type Phase,
} from "./protocol.ts";
import { decodeEnd, outrunVerdict, pairVerdict, prefillEnd, type SideEnd } from "./verdict.ts";

/** The owner gets the answer. */
export interface LegOwner {
  /** The answer has begun: the first bytes or tokens have arrived. */
  began(leg: LegRun): void;
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
  /** The instances on which the leg is counted. */
  readonly #held: Record<Side, Instance | undefined> = { prefill: undefined, decode: undefined };
  readonly #prefill: PrefillSide;
  readonly #decode: DecodeSide;
  #state: LegState = IDLE;
  #outrun = false;
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
    const { prefill, request } = this.task;
    // Counted before the instances are called, so that a burst does not see one least loaded instance.
    if (prefill !== undefined) this.#hold("prefill", prefill, estimateTokens(request));
    this.dispatch({ kind: "begin" });
  }

  /** Called when the owner no longer wants the answer. */
  unwanted(): void {
    this.dispatch({ kind: "unwanted" });
  }

  /**
   * Called when another attempt at the same choice answered first. What this one waited for in vain speaks against its
   * instance or its pair, once it has waited longer than there is reason for.
   */
  outrun(): void {
    const { wait } = this;
    const { prefill } = this.task;
    const { books, clock } = this.#context;
    this.#outrun = true;
    this.unwanted();
    if (wait === undefined) return;
    const judged = outrunVerdict(traitsOf(wait.on.info.connector), wait, clock.nowMs());
    if (judged.against === "instance") books.outrun(wait.on);
    else if (judged.against === "pair" && prefill !== undefined && this.decode !== undefined)
      books.pairEnded(prefill, this.decode, judged.verdict);
  }

  /** What it waits for. Undefined once the answer has begun, and while no instance has to answer within a known time. */
  get wait(): Wait | undefined {
    return this.#prefill.wait ?? this.#decode.wait;
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
    if (state.kind === "streaming" && before.kind !== "streaming") this.#owner.began(this);
    for (const effect of effects) this.#toOwner(effect);
  }

  #toInstances(effect: LegEffect): void {
    switch (effect.kind) {
      case "reserve":
        if (this.#held.decode === undefined) this.#hold("decode", this.#decode.on!);
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
    if (prefill !== undefined) this.#release("prefill", prefill);
    if (decode !== undefined) this.#release("decode", decode);
    if (pair !== "none" && this.task.prefill !== undefined && this.#decode.on !== undefined)
      this.#context.books.pairEnded(this.task.prefill, this.#decode.on, pair);
    if (!this.ended) return;
    this.#release("prefill", undefined); // It was never called.
    this.#context.live.delete(this);
    this.#context.onLegEnded();
  }

  #hold(side: Side, instance: Instance, tokens?: number): void {
    this.#held[side] = instance;
    if (side === "prefill") this.task.draft.prefillInstanceId = instance.instanceId;
    else this.task.draft.decodeInstanceId = instance.instanceId;
    this.#context.books.legStarted(instance, tokens);
  }

  #release(side: Side, end: SideEnd | undefined): void {
    const held = this.#held[side];
    if (held === undefined) return;
    this.#held[side] = undefined;
    if (end !== undefined) this.#context.metrics.leg(side, end.outcome);
    this.#context.books.legEnded(held, end?.verdict ?? "none");
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
      this.#context.paces.of(this.#decode.on!).answered(draft.transferMs + draft.decodeMs, completionTokens);
    } else if (outcome.kind === "failed") draft.error = `${outcome.error.code}: ${outcome.error.message}`;
    else draft.error = this.#outrun ? "cancelled: another attempt answered first" : "cancelled";
    this.#owner.finished(this, outcome);
  }
}

const PARTS: readonly Phase[] = ["reserve", "prefill", "transfer", "decode"];

/** Times of the parts of one leg, for its receipt and for deadline errors that say where the time went. */
class LegTimes {
  readonly #draft: LegDraft;
  /** Indices into PARTS: the leg's first part, and the one that runs. */
  readonly #first: number;
  #at: number;
  /** When the running part began. */
  #sinceMs: number;

  constructor(draft: LegDraft, { decodeFirst, unpaired }: LegTraits, nowMs: number) {
    this.#draft = draft;
    this.#at = this.#first = PARTS.indexOf(decodeFirst ? "reserve" : unpaired === true ? "transfer" : "prefill");
    this.#sinceMs = nowMs;
  }

  /** @param before The state in which `event` arrived. */
  note(before: LegState, event: LegEvent, nowMs: number): void {
    if (event.kind === "reserved" && before.kind === "reserving") this.#draft.reserveMs = nowMs - this.#sinceMs;
    else if (event.kind === "prefillDone") this.#draft.prefillMs = nowMs - this.#sinceMs;
    else if (event.kind === "decodeChunk") this.#draft.transferMs = nowMs - this.#sinceMs;
    else return;
    this.#at += 1;
    this.#sinceMs = nowMs;
  }

  /** Notes the end of the leg, whatever its outcome. */
  ended(nowMs: number): void {
    if (PARTS[this.#at] === "decode") this.#draft.decodeMs = nowMs - this.#sinceMs;
  }

  /** "reserve 1 ms, prefill 210 ms, transfer 12 ms" */
  where(nowMs: number): string {
    return PARTS.slice(this.#first, this.#at + 1)
      .map((part, index, { length }) => {
        const ms = index === length - 1 ? nowMs - this.#sinceMs : this.#draft[`${part}Ms`];
        return `${part} ${Math.round(ms)} ms`;
      })
      .join(", ");
  }
}
