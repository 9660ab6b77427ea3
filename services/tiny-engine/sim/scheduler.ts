// Continuous batching on a clock. There is one timer for the whole engine: a step admits the sequences that fit,
// takes the time of its prompt tokens and its decode cost, then gives every running sequence its
// token in one burst. Prompts are cut to a token budget per step, so a long prompt slows the others
// down for some steps, as vLLM's chunked prefill does.
import type { Clock, Timer } from "../../common/clock.ts";
import type { KvSpace } from "../kv/connector.ts";
import type { EngineMetrics } from "../metrics.ts";
import type { SimSequence } from "./sim-sequence.ts";

export interface Timing {
  readonly prefillMsPerToken: number;
  /** One step with anything to decode, however many sequences it holds. */
  readonly decodeMsPerToken: number;
  /** Added to the step in which a sequence starts. */
  readonly requestMs: number;
  /** Prompt tokens that one step computes at most. */
  readonly stepTokenLimit: number;
}

export interface SchedulerOptions extends Timing {
  readonly slots: number;
  readonly kvTokenLimit: number;
  readonly clock: Clock;
  readonly metrics: EngineMetrics;
  /** Called when a sequence is admitted; sets its tokens found in the prefix cache. */
  readonly onAdmit: (sequence: SimSequence) => void;
  /** Called when a sequence's next token is due. May end or park the sequence. */
  readonly onToken: (sequence: SimSequence, nowMs: number) => void;
}

export class Scheduler implements KvSpace {
  readonly #options: SchedulerOptions;
  #waiting: SimSequence[] = [];
  #running: SimSequence[] = [];
  #heldSlots = 0;
  #usedTokens = 0;
  #deferred = 0;
  #wedged = false;
  #closed = false;
  /** Whether a step is iterating over the running sequences. */
  #stepping = false;
  /** Whether the timer is set, for a step's start or its end. */
  #scheduled = false;
  #dueMs = 0;
  #timer: Timer | null = null;

  constructor(options: SchedulerOptions) {
    this.#options = options;
  }

  get runningCount(): number {
    return this.#running.length;
  }
  get waitingCount(): number {
    return this.#waiting.length + this.#deferred;
  }
  get usedTokens(): number {
    return this.#usedTokens;
  }
  get freeSlots(): number {
    return this.#options.slots - this.#running.length - this.#heldSlots;
  }

  enqueue(sequence: SimSequence): void {
    sequence.state = "waiting";
    this.#waiting.push(sequence);
    this.#wake();
  }

  /** Runs a sequence whose slot and KV tokens were held for it. */
  runHeld(sequence: SimSequence, heldTokens: number): void {
    this.releaseSlot(heldTokens);
    this.#start(sequence, this.#options.clock.nowMs());
    this.#usedTokens += sequence.kvTokens;
    this.#wake();
  }

  /** Takes a slot for KV that no running sequence owns. False: none is free. */
  holdSlot(tokens: number): boolean {
    if (this.freeSlots <= 0 || this.#usedTokens + tokens > this.#options.kvTokenLimit) return false;
    this.#heldSlots++;
    this.#usedTokens += tokens;
    return true;
  }

  releaseSlot(tokens: number): void {
    this.#heldSlots--;
    this.#usedTokens -= tokens;
    this.#wake();
  }

  /** KV that outlives its sequence without keeping a slot: nixl's blocks under lease. */
  holdTokens(tokens: number): void {
    this.#usedTokens += tokens;
  }
  releaseTokens(tokens: number): void {
    this.#usedTokens -= tokens;
    this.#wake();
  }

  /** A sequence that waits for a transfer counts as waiting, for the reason "deferred". */
  defer(): () => void {
    this.#deferred++;
    this.#setGauges();
    return () => {
      this.#deferred--;
    };
  }

  /** Ends the sequence and frees its slot and KV. */
  remove(sequence: SimSequence): void {
    if (sequence.state === "running") this.#usedTokens -= sequence.kvTokens;
    sequence.kvTokens = 0;
    // A step iterates over the arrays, and drops the ended sequences itself.
    if (this.#stepping) return;
    this.#running = this.#running.filter((other) => other !== sequence);
    this.#waiting = this.#waiting.filter((other) => other !== sequence);
    this.#wake();
  }

  /**
   * Takes a sequence out of the batch while its KV is on its way; slot and tokens stay taken. Undone by `releaseSlot`.
   */
  park(sequence: SimSequence): number {
    const tokens = sequence.kvTokens;
    sequence.state = "transferring";
    this.#heldSlots++;
    if (!this.#stepping) this.#running = this.#running.filter((other) => other !== sequence);
    return tokens;
  }

  /** Stops all steps until undone, as a hung engine core does. The gauges don't change. */
  setWedged(wedged: boolean): void {
    this.#wedged = wedged;
    if (wedged) this.#cancelStep();
    else this.#wake();
  }

  close(): void {
    this.#closed = true;
    this.#cancelStep();
  }

  #wake(): void {
    if (this.#scheduled || this.#stepping || this.#wedged || this.#closed) return;
    if (this.#running.length === 0 && this.#waiting.length === 0) {
      this.#setGauges();
      return;
    }
    this.#scheduled = true;
    this.#dueMs = this.#options.clock.nowMs();
    // One turn of the event loop later, so that requests which arrive together share a step.
    this.#timer = this.#options.clock.setTimer(0, () => this.#plan());
  }

  #cancelStep(): void {
    this.#timer?.cancel();
    this.#scheduled = false;
  }

  #plan(): void {
    const { clock, prefillMsPerToken, decodeMsPerToken, requestMs, stepTokenLimit } = this.#options;
    const nowMs = clock.nowMs();
    this.#scheduled = false;
    this.#admit(nowMs);
    let budget = stepTokenLimit;
    let durationMs = 0;
    let decoding = false;
    let planned = false;
    let wakeMs = Infinity;
    for (const sequence of this.#running) {
      sequence.planned = "nothing";
      if (sequence.state !== "running") continue;
      if (sequence.notBeforeMs > nowMs) {
        wakeMs = Math.min(wakeMs, sequence.notBeforeMs);
      } else if (sequence.prefillLeft > 0) {
        const tokens = Math.min(sequence.prefillLeft, budget);
        if (tokens === 0) continue;
        budget -= tokens;
        if (sequence.kvTokens === sequence.cachedTokens) durationMs += requestMs;
        durationMs += tokens * prefillMsPerToken;
        sequence.planned = "prefill";
        sequence.plannedPrefill = tokens;
        planned = true;
      } else {
        sequence.planned = "decode";
        decoding = planned = true;
      }
    }
    this.#setGauges();
    if (!planned) {
      // Only stalled or slowed sequences are left: the first must be woken by its own abort.
      if (wakeMs === Infinity) return;
      this.#scheduled = true;
      this.#dueMs = wakeMs;
      this.#timer = clock.setTimer(wakeMs - nowMs, () => this.#plan());
      return;
    }
    if (decoding) durationMs += decodeMsPerToken;
    // Steps follow a grid, so a late timer does not slow the engine down; a step's worth of lateness is
    // made up, more is forgotten, or an overloaded machine would burst.
    this.#dueMs = Math.max(this.#dueMs, nowMs - durationMs) + durationMs;
    this.#scheduled = true;
    this.#timer = clock.setTimer(this.#dueMs - nowMs, () => this.#finishStep());
  }

  #finishStep(): void {
    const nowMs = this.#options.clock.nowMs();
    const { metrics } = this.#options;
    let stepTokens = 0;
    this.#scheduled = false;
    this.#stepping = true;
    for (const sequence of this.#running) {
      if (sequence.state !== "running" || sequence.planned === "nothing") continue;
      if (sequence.planned === "prefill") {
        stepTokens += sequence.plannedPrefill;
        this.#grow(sequence, sequence.plannedPrefill);
        sequence.prefillLeft -= sequence.plannedPrefill;
        if (sequence.prefillLeft > 0) continue;
      } else {
        stepTokens++;
        this.#grow(sequence, 1);
      }
      this.#options.onToken(sequence, nowMs);
    }
    this.#stepping = false;
    if (stepTokens > 0) metrics.observe("iteration_tokens_total", stepTokens);
    this.#running = this.#running.filter((sequence) => sequence.state === "running");
    this.#waiting = this.#waiting.filter((sequence) => sequence.state === "waiting");
    this.#preempt();
    if (this.#wedged || this.#closed) return;
    if (this.#running.length === 0 && this.#waiting.length === 0) this.#setGauges();
    else this.#plan();
  }

  #grow(sequence: SimSequence, tokens: number): void {
    sequence.kvTokens += tokens;
    this.#usedTokens += tokens;
  }

  #admit(nowMs: number): void {
    let admitted = 0;
    for (const sequence of this.#waiting) {
      if (this.freeSlots <= 0) break;
      const tokens = sequence.prefillLeft;
      const onlyOne = this.#running.length === 0;
      if (!onlyOne && this.#usedTokens + tokens > this.#options.kvTokenLimit) break;
      this.#options.onAdmit(sequence);
      this.#start(sequence, nowMs);
      this.#usedTokens += sequence.kvTokens;
      admitted++;
    }
    if (admitted > 0) this.#waiting.splice(0, admitted);
  }

  #start(sequence: SimSequence, nowMs: number): void {
    sequence.state = "running";
    if (sequence.scheduledMs === 0) sequence.scheduledMs = nowMs;
    this.#running.push(sequence);
  }

  /** Out of KV: the newest sequence goes back to the queue and computes its prompt and answer again, as in vLLM. */
  #preempt(): void {
    while (this.#usedTokens > this.#options.kvTokenLimit && this.#running.length > 1) {
      const victim = this.#running.pop()!;
      this.#usedTokens -= victim.kvTokens;
      victim.prefillLeft = victim.request.prompt.length + victim.outputCount;
      victim.kvTokens = victim.cachedTokens = 0;
      victim.preemptions++;
      victim.state = "waiting";
      this.#waiting.unshift(victim);
      this.#options.metrics.preemptions++;
    }
  }

  #setGauges(): void {
    if (this.#wedged) return;
    const { metrics, kvTokenLimit } = this.#options;
    metrics.running = this.#running.length;
    metrics.waiting = this.waitingCount;
    metrics.deferred = this.#deferred;
    metrics.kvUsageRatio = this.#usedTokens / kvTokenLimit;
  }
}
