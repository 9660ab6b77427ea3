// A circuit breaker, for one instance or for one pair of them. Closed, it lets users' legs through and keeps a score;
// open, it lets none through. A user's leg never tries whether it may close: a probe does, a tiny request of our own, and
// one probe that succeeds closes it. Where answers must be proven before users get them, it is open from the start.
// Source of the pattern: Nygard, Release It!, 2007; here with half-open by probes, as in Envoy's active health checks.

/**
 * What the end of a leg says of an instance or a pair. `none`: nothing, such as a client that left. `wedged`: it took the
 * work and then stalled; one is enough, because the next user would wait as long in vain.
 */
export type Verdict = "good" | "none" | "bad" | "wedged";

/** `failing`: legs of users fail. `unproven`: no probe has succeeded since the engine started. */
export type OpenBecause = "failing" | "unproven";

/**
 * How a probe failed. `refused`: quickly, with an error; it may be repaired any second. `late` or `wrong`: no answer in
 * time, or not the one that the KV gives; trying often would only keep an engine busy that can't do it.
 */
export type ProbeFailure = "refused" | "late" | "wrong";

export interface BreakerLimits {
  /** Legs in a row that open it. Among successes it takes more: a failure weighs as much as two of them. */
  readonly failureLimit: number;
  /** From one probe to the next, before any back-off. */
  readonly probeEveryMs: number;
}

export const BREAKER_LIMITS: BreakerLimits = { failureLimit: 5, probeEveryMs: 500 };

/** Failed probes double the pause up to here. */
const PAUSE_LIMIT_MS: Readonly<Record<ProbeFailure, number>> = { refused: 1_000, late: 30_000, wrong: 30_000 };
/** A failure counts half after this time. */
const HALF_LIFE_MS = 5_000;

const FAILING = "Legs failed on it. A probe must succeed before it gets requests again.";
const UNPROVEN = "No probe has succeeded with it yet.";

type State =
  | { readonly kind: "closed"; score: number }
  | {
      readonly kind: "open";
      readonly because: OpenBecause;
      text: string;
      probeAtMs: number;
      pauseMs: number;
      /** How its last probe failed. */
      failure: ProbeFailure | undefined;
    };

export class Breaker {
  readonly #limits: BreakerLimits;
  #state: State = { kind: "closed", score: 0 };
  #suspicion = 0;
  #suspectedAtMs = 0;

  constructor(limits: BreakerLimits) {
    this.#limits = limits;
  }

  get open(): boolean {
    return this.#state.kind === "open";
  }

  /** Undefined while it is closed. */
  get because(): OpenBecause | undefined {
    return this.#state.kind === "open" ? this.#state.because : undefined;
  }

  /** Why it is open, for people; with what the last probe said. */
  get text(): string {
    return this.#state.kind === "open" ? this.#state.text : "";
  }

  /** Nothing is held against it: it may be forgotten. */
  get spotless(): boolean {
    return this.#state.kind === "closed" && this.#state.score === 0;
  }

  /** A user's leg has ended. True where that opened it. What ends while it is open says nothing new. */
  judge(verdict: Verdict, nowMs: number): boolean {
    if (verdict === "none" || this.#state.kind === "open") return false;
    if (verdict === "good") {
      this.#state.score = Math.max(0, this.#state.score - 1);
      return false;
    }
    this.#suspicion = this.suspicion(nowMs) + 1;
    this.#suspectedAtMs = nowMs;
    this.#state.score += verdict === "wedged" ? this.#opensAt : 2;
    if (this.#state.score < this.#opensAt) return false;
    this.#open("failing", FAILING, nowMs + this.#limits.probeEveryMs);
    return true;
  }

  /**
   * The engine behind it started, or is another one: only a probe can tell what its answers are worth. A verdict outlives
   * the engine that it condemned: one whose probes were late or wrong waits out its back-off, or each start would be
   * followed by a probe that wedges it again.
   */
  distrust(nowMs: number): void {
    if (this.#state.kind === "closed") this.#open("unproven", UNPROVEN, nowMs);
    else this.probeSoon(nowMs);
  }

  /** Failures of the last seconds, fading. Policies count them as load: what fails fast is never idle for long. */
  suspicion(nowMs: number): number {
    if (this.#suspicion === 0) return 0;
    const left = this.#suspicion * 2 ** (-(nowMs - this.#suspectedAtMs) / HALF_LIFE_MS);
    if (left < 0.1) this.#suspicion = 0;
    return left < 0.1 ? 0 : left;
  }

  /** Whether a probe should be sent now. */
  due(nowMs: number): boolean {
    return this.#state.kind === "open" && nowMs >= this.#state.probeAtMs;
  }

  /** When a probe is due; Infinity while it is closed. */
  get dueMs(): number {
    return this.#state.kind === "open" ? this.#state.probeAtMs : Infinity;
  }

  /** A probe is sent. */
  probing(nowMs: number): void {
    if (this.#state.kind === "open") this.#state.probeAtMs = nowMs + this.#state.pauseMs;
  }

  /** A probe failed. The next one comes after a longer pause. @param text One sentence. */
  probeFailed(failure: ProbeFailure, text: string, nowMs: number): void {
    const state = this.#state;
    if (state.kind === "closed") return;
    const limitMs = Math.max(this.#limits.probeEveryMs, PAUSE_LIMIT_MS[failure]);
    state.pauseMs = Math.min(limitMs, 2 * state.pauseMs);
    state.probeAtMs = nowMs + state.pauseMs;
    state.failure = failure;
    state.text = text;
  }

  /** Something changed that makes a probe worth its while at once. */
  probeSoon(nowMs: number): void {
    const state = this.#state;
    if (state.kind === "open" && (state.failure === undefined || state.failure === "refused")) state.probeAtMs = nowMs;
  }

  /** A probe succeeded. On probation: the next failure opens it again. True where it was open. */
  close(): boolean {
    if (this.#state.kind === "closed") return false;
    this.#state = { kind: "closed", score: this.#state.because === "failing" ? this.#opensAt - 2 : 0 };
    return true;
  }

  #open(because: OpenBecause, text: string, probeAtMs: number): void {
    const pauseMs = this.#limits.probeEveryMs;
    this.#state = { kind: "open", because, text, probeAtMs, pauseMs, failure: undefined };
  }

  get #opensAt(): number {
    return 2 * this.#limits.failureLimit;
  }
}
