// One choice of one prompt: makes attempts until one gives the answer, or the table of failures allows no further one.
// An attempt whose first byte is late gets another one beside it, the hedge (attempts.ts).
// Once a byte of this choice was delivered, a further attempt must write the same bytes again (sent-so-far.ts).
import type { ServiceError } from "../../common/errors.ts";
import type { Admitted } from "../admission/admission.ts";
import type { Deadline } from "../../common/deadlines.ts";
import type { Wait } from "../leg/bounds.ts";
import { LegRun, type LegOwner } from "../leg/run.ts";
import type { LegOutcome, Phase } from "../leg/protocol.ts";
import { Exclusions, type Place } from "../placement/placement.ts";
import { Attempts, type AttemptsContext, type AttemptsOwner } from "./attempts.ts";
import { FALLBACK_LIMIT, LegDraft, type ReceiptDraft } from "../request/receipt.ts";
import { SentSoFar } from "./sent-so-far.ts";
import { afterFailure, afterRefusal, type Next, type RetryRules, type Spent } from "./retry.ts";
import type { QueryWatch } from "./query-of-death.ts";
import type { RetryBudget } from "./retry-budget.ts";
import type { Fallback } from "../request/metrics.ts";
import { estimateTokens, type AnswerEnd, type RelayRequest } from "../request/request.ts";

/**
 * Kinds of engines that write the same bytes again for a greedy or seeded request:
 * test/tiny-engine/llama/repeatable.test.ts.
 */
const REPEATABLE_ENGINES: ReadonlySet<string> = new Set(["embedded", "sim"]);

export interface ChoiceContext extends AttemptsContext {
  readonly queries: QueryWatch;
  readonly budget: RetryBudget;
}

/** The request that the choice belongs to. */
export interface ChoiceOwner {
  readonly request: RelayRequest;
  readonly receipt: ReceiptDraft;
  readonly admitted: Pick<Admitted, "findSlot">;
  /** Time since the request arrived. */
  elapsedMs(): number;
  /** Returns false to hold the choice back until its `resume`. */
  deliver(index: number, events: Buffer): boolean;
  completed(index: number, end: AnswerEnd): void;
  failed(error: ServiceError): void;
  /** Since when no other choice of the request holds slots that could become free. Undefined while one does. */
  othersIdleSinceMs(index: number): number | undefined;
}

export class Choice implements LegOwner, AttemptsOwner {
  readonly index: number;
  /** When its last leg ended. 0 before. */
  idleSinceMs = 0;
  readonly #context: ChoiceContext;
  readonly #owner: ChoiceOwner;
  readonly #exclusions = new Exclusions();
  readonly #attempts: Attempts;
  /** Ends the wait for a slot. */
  #endWait = (): void => {};
  #retries = 0;
  #refusals = 0;
  /** The failure that the running attempt makes up for. */
  #failure: ServiceError | undefined;
  /** What the client has, if the stream can be replayed. */
  #sent: SentSoFar | undefined;
  /** When its first bytes were delivered. */
  #sentMs: number | undefined;
  /** Set while another attempt repeats what the client has: why the stream broke, and the deadline for the attempt. */
  #broken: { readonly error: ServiceError; readonly due: Deadline } | undefined;

  constructor(index: number, context: ChoiceContext, owner: ChoiceOwner) {
    this.index = index;
    this.#context = context;
    this.#owner = owner;
    this.#attempts = new Attempts(context, owner.request, this.#exclusions, this);
  }

  /** Whether it holds slots. */
  get running(): boolean {
    return this.#attempts.running;
  }

  begin(): void {
    this.#find(
      () => this.place(),
      (place) => this.#attempts.begin(place, this.#sentMs === undefined),
      // The first failure says more than that no instance is left to try, unless it was only a refusal.
      (error) =>
        this.#fail(this.#said(this.#failure === undefined || isRefusal(this.#failure) ? error : this.#failure)),
    );
  }

  unwanted(): void {
    this.#endWait();
    this.#mended();
    this.#attempts.unwanted();
  }

  resume(): void {
    this.#attempts.resume();
  }

  where(): string {
    return this.#attempts.where();
  }

  // The calls of its attempts.
  place(): Place {
    const { request } = this.#owner;
    const wanted = { model: request.model, tokens: estimateTokens(request), strict: request.strict === true };
    return this.#context.placer.place(wanted, this.#exclusions);
  }

  legOn({ traits, prefill, decode, fallback }: Place): LegRun {
    const { request, receipt } = this.#owner;
    const draft = new LegDraft(this.index, this.#owner.elapsedMs());
    receipt.legs.push(draft);
    if (fallback !== undefined) this.#note(fallback, fallback);
    const promptIndex = request.promptIsList ? Math.floor(this.index / request.choices) : undefined;
    const sampleIndex = this.index % request.choices;
    return new LegRun(this.#context, { request, draft, promptIndex, sampleIndex, traits, prefill, decode }, this);
  }

  hedged(part: Wait["part"]): void {
    this.#note("hedge", `hedge:${part}`);
  }

  // The calls of its legs. `deliver` is on the token path.
  began(leg: LegRun): void {
    this.#attempts.answeredBy(leg);
  }

  deliver(events: Buffer): boolean {
    if (this.#sentMs === undefined) {
      this.#sentMs = this.#context.clock.nowMs();
      if (this.#mayReplay()) this.#sent = new SentSoFar();
    }
    const sent = this.#sent;
    if (sent === undefined) return this.#owner.deliver(this.index, events);
    const fresh = sent.pass(events);
    if (fresh === undefined) {
      this.#replayFailed("diverged");
      return true;
    }
    if (this.#broken !== undefined && !sent.repeating) {
      this.#mended();
      this.#context.metrics.replay("exact");
    }
    return fresh.length === 0 || this.#owner.deliver(this.index, fresh);
  }

  findDecode(leg: LegRun, refusal: ServiceError | undefined): void {
    if (this.#attempts.isHedge(leg)) return this.#attempts.findDecode(leg, refusal);
    if (refusal !== undefined) {
      // Another decode instance may take the KV that this one refused.
      const next = afterRefusal(refusal.code, this.#spent, this.#rules());
      if (!this.#goesOn(next, leg, refusal, "transfer")) return leg.noDecode(this.#said(refusal));
    }
    this.#find(
      () => this.#context.placer.placeDecode(leg.task.prefill ?? leg.task.request.model, this.#exclusions),
      (decode) => {
        if (this.#context.placer.isLastResort(decode)) this.#note("last_resort", "last_resort");
        leg.decodeFound(decode);
      },
      (error) => leg.noDecode(this.#said(refusal === undefined || isRefusal(refusal) ? error : refusal)),
    );
  }

  endSearch(): void {
    this.#endWait();
  }

  finished(leg: LegRun, outcome: LegOutcome): void {
    if (!this.#attempts.has(leg)) return;
    const { queries } = this.#context;
    const fatal = outcome.kind === "failed" ? queries.failed(this.#owner.request, leg, outcome) : undefined;
    if (this.#attempts.ended(leg, outcome, fatal !== undefined) === "other goes on") {
      if (outcome.kind === "failed") this.#failure ??= outcome.error;
      return;
    }
    this.idleSinceMs = this.#context.clock.nowMs();
    switch (outcome.kind) {
      case "completed":
        // The new answer is shorter than the part that the client already has.
        if (this.#broken !== undefined) return this.#replayFailed("diverged");
        queries.succeeded(leg.task.prefill, leg.decode, this.#owner.request);
        return this.#owner.completed(this.index, outcome.end);
      case "cancelled":
        return; // This choice asked for it.
      case "failed": {
        const { error, phase, side } = outcome;
        const delivered = this.#sentMs !== undefined;
        const { decodeFirst } = leg.task.traits;
        const code = fatal?.code ?? error.code;
        const failed = { code, side, delivered, repeatable: this.#canCatchUp(), decodeFirst };
        const next = afterFailure(failed, this.#spent, this.#rules());
        if (!this.#goesOn(next, leg, error, phase)) return this.#fail(fatal ?? this.#said(error));
        if (next.kind === "retry") this.#failure = error;
        if (delivered) this.#replay(error);
        return this.begin();
      }
    }
  }

  /** Acts on the decision about a failure of `leg`. Returns false if it is to give up. */
  #goesOn(next: Next, { task, decode }: LegRun, error: ServiceError, phase: Phase): boolean {
    const { metrics } = this.#context;
    switch (next.kind) {
      case "give-up":
        if (next.because === "budget" || next.because === "strict") metrics.retryRefused(next.because);
        return false;
      case "wait":
        this.#exclusions.busy(next.busy === "prefill" ? task.prefill! : decode!);
        this.#note("busy", `busy:${next.busy}`);
        return true;
      case "retry": {
        const { exclude } = next;
        if (exclude.prefill !== undefined && task.prefill !== undefined)
          this.#exclusions.exclude(task.prefill, exclude.prefill);
        if (exclude.decode !== undefined && decode !== undefined) this.#exclusions.exclude(decode, exclude.decode);
        if (next.refused === undefined) this.#retries += 1;
        else {
          this.#refusals += 1;
          const refused = next.refused === "prefill" ? task.prefill : decode;
          if (refused !== undefined) this.#exclusions.refused(refused);
        }
        metrics.retry(error.code);
        const kind = this.#sentMs === undefined ? "retry" : "replay";
        this.#note(kind, `${kind}:${phase}:${error.code}`);
        return true;
      }
    }
  }

  get #spent(): Spent {
    return { retries: this.#retries, refusals: this.#refusals };
  }

  /** What a client is told: not that one instance refused, but what the model lacks. */
  #said(error: ServiceError): ServiceError {
    if (!isRefusal(error)) return error;
    const { model, strict = false } = this.#owner.request;
    return this.#context.placer.lack(model, strict) ?? error;
  }

  #rules(): RetryRules {
    const { budget, limits } = this.#context;
    return {
      limit: limits.current.retryLimit,
      strict: this.#owner.request.strict === true,
      takeFromBudget: budget.take,
    };
  }

  #mayReplay(): boolean {
    const { request } = this.#owner;
    const { replayMode, retryLimit } = this.#context.limits.current;
    if (!request.stream || request.repeatable !== true || request.strict === true) return false;
    if (retryLimit === 0 || replayMode === "never") return false;
    return replayMode === "always" || REPEATABLE_ENGINES.has(this.#attempts.decode?.info.engine ?? "");
  }

  /** Whether a replay has time to repeat what the client has, by the time that it took to write. */
  #canCatchUp(): boolean {
    if (this.#sent === undefined || this.#sentMs === undefined) return false;
    return (
      this.#broken !== undefined ||
      this.#context.clock.nowMs() - this.#sentMs < this.#context.limits.current.replayTimeoutMs
    );
  }

  #replay(error: ServiceError): void {
    const { deadlines, clock, limits } = this.#context;
    this.#broken ??= {
      error,
      due: deadlines.at(clock.nowMs() + limits.current.replayTimeoutMs, () => this.#replayFailed("failed")),
    };
    this.#sent!.repeat();
  }

  #fail(error: ServiceError): void {
    if (this.#broken !== undefined) this.#replayFailed("failed");
    else this.#owner.failed(error);
  }

  /** Reports to the client why its stream broke, and not why the replay failed. */
  #replayFailed(outcome: "diverged" | "failed"): void {
    if (this.#broken === undefined) return;
    const { error } = this.#broken;
    this.#mended();
    this.#context.metrics.replay(outcome);
    this.#note("replay", `replay:${outcome}`);
    this.#endWait();
    this.#owner.failed(error);
  }

  #mended(): void {
    this.#broken?.due.cancel();
    this.#broken = undefined;
  }

  #note(reason: Fallback, text: string): void {
    this.#context.metrics.fallback(reason);
    const { fallbacks } = this.#owner.receipt;
    // A request that waits for a slot may be refused again and again. It is noted once.
    if (reason !== "retry" && reason !== "replay" && fallbacks.includes(text)) return;
    if (fallbacks.length < FALLBACK_LIMIT) fallbacks.push(text);
  }

  /** Calls `found` or `failed`, at once or when a slot is free. */
  #find<T>(pick: () => T, found: (picked: T) => void, failed: (error: ServiceError) => void): void {
    const othersIdleSinceMs = (): number | undefined => this.#owner.othersIdleSinceMs(this.index);
    const end = this.#owner.admitted.findSlot({ pick, found, failed }, othersIdleSinceMs);
    if (end !== undefined) this.#endWait = end;
  }
}

/** An instance took the leg not at all: that says nothing of the request. */
function isRefusal({ code }: ServiceError): boolean {
  return code === "instance_busy" || code === "instance_unavailable";
}
