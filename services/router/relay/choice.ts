// One choice of one prompt: attempt after attempt, until one gives the answer or the table of failures says that no
// further one may. Nothing is tried again once a byte of this choice was delivered.
import type { ServiceError } from "../../common/errors.ts";
import type { End } from "#gen/tandem/decode/v1/decode_pb.js";
import { RelayLeg } from "./leg.ts";
import type { LegContext, LegOwner, Refusal } from "./leg.ts";
import type { Handoff, LegOutcome } from "./legs.ts";
import { Avoid } from "./placement.ts";
import type { Place, Placer } from "./placement.ts";
import { createLegDraft, FALLBACK_LIMIT } from "./receipt.ts";
import type { ReceiptDraft } from "./receipt.ts";
import type { RelayRequest } from "./request.ts";
import type { Waiting, WaitRoom } from "./wait-room.ts";

const QUEUE_TIMEOUT_MS = 30_000;

export interface ChoiceContext extends LegContext {
  readonly placer: Placer;
  readonly waitRoom: WaitRoom;
  readonly mintLegId: () => string;
}

/** The request that this is a choice of. */
export interface ChoiceOwner {
  readonly request: RelayRequest;
  readonly receipt: ReceiptDraft;
  /** False holds the choice back until its `resume`. */
  deliver(index: number, events: Buffer): boolean;
  completed(index: number, end: End): void;
  failed(error: ServiceError): void;
  /** Whether another choice of the request holds slots, which will come free. */
  othersRun(index: number): boolean;
}

export class Choice implements LegOwner {
  readonly index: number;
  readonly #context: ChoiceContext;
  readonly #owner: ChoiceOwner;
  readonly #avoid = new Avoid();
  #leg: RelayLeg | undefined;
  #wait: { readonly waiting: Waiting; sinceMs: number; readonly fail: (error: ServiceError) => void } | undefined;
  #retries = 0;
  /** The failure that the running attempt makes up for. */
  #failure: ServiceError | undefined;

  constructor(index: number, context: ChoiceContext, owner: ChoiceOwner) {
    this.index = index;
    this.#context = context;
    this.#owner = owner;
  }

  /** Whether it holds slots. */
  get running(): boolean {
    return this.#leg !== undefined;
  }

  begin(): void {
    this.#find(
      () => this.#context.placer.place(this.#owner.request.model, this.#avoid),
      (place) => this.#attempt(place),
      // What went wrong first tells more than that nothing is left to try.
      (error) => this.#owner.failed(this.#failure ?? error),
    );
  }

  unwanted(): void {
    this.#endWait();
    const leg = this.#leg;
    this.#leg = undefined;
    leg?.unwanted();
  }

  resume(): void {
    this.#leg?.resume();
  }

  /** Called every now and then: gives up a wait for a busy instance. */
  check(nowMs: number): void {
    const wait = this.#wait;
    if (wait === undefined) return;
    if (this.#owner.othersRun(this.index)) wait.sinceMs = nowMs;
    else if (nowMs - wait.sinceMs >= (this.#context.limits.queueTimeoutMs ?? QUEUE_TIMEOUT_MS)) {
      this.#endWait();
      wait.fail(wait.waiting.error);
    }
  }

  where(nowMs: number): string {
    return this.#leg?.where(nowMs) ?? "";
  }

  // Of its leg.

  deliver(events: Buffer): boolean {
    return this.#owner.deliver(this.index, events);
  }

  findDecode(leg: RelayLeg, handoff: Handoff, refusal: Refusal | undefined): () => void {
    if (refusal !== undefined && !this.#another(refusal)) {
      leg.noDecode(refusal.error);
      return () => {};
    }
    this.#find(
      () => this.#context.placer.placeDecode(leg.task.prefill, this.#avoid),
      (decode) => leg.openOn(decode, handoff),
      (error) => leg.noDecode(refusal?.error.code === "instance_busy" ? error : (refusal?.error ?? error)),
    );
    return () => this.#endWait();
  }

  finished(leg: RelayLeg, outcome: LegOutcome): void {
    if (this.#leg !== leg) return;
    this.#leg = undefined;
    switch (outcome.kind) {
      case "completed":
        return this.#owner.completed(this.index, leg.end!);
      case "cancelled":
        return; // It was this choice that asked for it.
      case "failed": {
        const { error, phase, side } = outcome;
        if (leg.delivered || side === undefined) return this.#owner.failed(error);
        if (error.code === "instance_busy") {
          // With prefill first, the search for a decode instance has waited already.
          if (side === "decode" && !leg.task.traits.decodeFirst) return this.#owner.failed(error);
          // Refused before anything was paid: not a retry but a wait.
          this.#avoid.busy(side === "prefill" ? leg.task.prefill : leg.decode!);
          this.#note("busy", `busy:${side}`);
          return this.begin();
        }
        const { retry } = error.failure;
        if (retry === "never" || this.#retries >= this.#context.limits.retryLimit) return this.#owner.failed(error);
        if (side === "prefill" || retry === "both legs") this.#avoid.failed(leg.task.prefill);
        if (leg.decode !== undefined && (side === "decode" || retry === "both legs")) this.#avoid.failed(leg.decode);
        this.#retry(error, phase);
        this.#failure = error;
        return this.begin();
      }
    }
  }

  #attempt({ traits, prefill, decode }: Place): void {
    const { request, receipt } = this.#owner;
    const draft = createLegDraft(this.#context.mintLegId(), this.index);
    receipt.legs.push(draft);
    const promptIndex = request.promptIsList ? Math.floor(this.index / request.choices) : undefined;
    const sampleIndex = this.index % request.choices;
    this.#leg = new RelayLeg(this.#context, { request, draft, promptIndex, sampleIndex, traits, prefill, decode }, this);
    this.#leg.begin();
  }

  /** Whether the KV may be offered to another decode instance. */
  #another({ by, error }: Refusal): boolean {
    if (error.code === "instance_busy") {
      this.#avoid.busy(by);
      this.#note("busy", "busy:decode");
      return true;
    }
    if (this.#retries >= this.#context.limits.retryLimit) return false;
    this.#avoid.failed(by);
    this.#retry(error, "transfer");
    return true;
  }

  #retry(error: ServiceError, phase: string): void {
    this.#retries += 1;
    this.#context.metrics.retry(error.code);
    this.#note("retry", `retry:${phase}:${error.code}`);
  }

  #note(reason: "retry" | "busy", text: string): void {
    this.#context.metrics.fallback(reason);
    const { fallbacks } = this.#owner.receipt;
    // A request that waits for a slot may be refused again and again; once tells it all.
    if (reason === "busy" && fallbacks.includes(text)) return;
    if (fallbacks.length < FALLBACK_LIMIT) fallbacks.push(text);
  }

  #find<T>(pick: () => T, found: (place: T) => void, fail: (error: ServiceError) => void): void {
    const over = <V>(then: (value: V) => void) => (value: V): void => {
      this.#wait = undefined;
      then(value);
    };
    const waiting = this.#context.waitRoom.find(pick, over(found), over(fail));
    if (waiting !== undefined) this.#wait = { waiting, sinceMs: this.#context.clock.nowMs(), fail };
  }

  #endWait(): void {
    this.#wait?.waiting.end();
    this.#wait = undefined;
  }
}
