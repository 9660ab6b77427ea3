// A circuit breaker, for one instance or for one pair of them. Closed, it lets users' legs through and keeps a score;
// open, it lets none through. No user's leg ever tries whether it may close: a canary does, a tiny request of our own,
// and one canary that comes through closes it.
// Source of the pattern: Nygard, Release It!, 2007; here with half-open by probes, as in Envoy's active health checks.

/**
 * What the end of a leg says of an instance or a pair. `none`: nothing, such as a client that left. `wedged`: it took the
 * work and then gave no sign of life; one is enough, for the next user would wait as long in vain.
 */
export type Verdict = "good" | "none" | "bad" | "wedged";

export interface BreakerLimits {
  /** Legs in a row that open it. Among successes it takes more: a failure weighs as much as two of them. */
  readonly failureLimit: number;
  /** From one canary to the next. */
  readonly canaryEveryMs: number;
}

export const BREAKER_LIMITS: BreakerLimits = { failureLimit: 5, canaryEveryMs: 500 };

type State = { readonly kind: "closed"; score: number } | { readonly kind: "open"; probeAtMs: number; probes: number };

/** A failure weighs less the older it is: half after so long. */
const HALF_LIFE_MS = 5_000;

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
    this.#state = { kind: "open", probeAtMs: nowMs + this.#limits.canaryEveryMs, probes: 0 };
    return true;
  }

  /** Failures of the last seconds, fading. Policies count them as load: what fails fast is never idle for long. */
  suspicion(nowMs: number): number {
    if (this.#suspicion === 0) return 0;
    const left = this.#suspicion * 2 ** (-(nowMs - this.#suspectedAtMs) / HALF_LIFE_MS);
    return left < 0.1 ? 0 : left;
  }

  /** Whether a canary should be sent now. */
  due(nowMs: number): boolean {
    return this.#state.kind === "open" && nowMs >= this.#state.probeAtMs;
  }

  /** A canary is sent. Returns how many were sent before it since it opened. */
  probing(nowMs: number): number {
    if (this.#state.kind === "closed") return 0;
    this.#state.probeAtMs = nowMs + this.#limits.canaryEveryMs;
    return this.#state.probes++;
  }

  /** Something changed that makes a canary worth its while at once, such as a new engine. */
  probeNow(nowMs: number): void {
    if (this.#state.kind === "open") this.#state.probeAtMs = nowMs;
  }

  /** A canary came through. On probation: the next failure opens it again. True where it was open. */
  close(): boolean {
    if (this.#state.kind === "closed") return false;
    this.#state = { kind: "closed", score: this.#opensAt - 2 };
    return true;
  }

  get #opensAt(): number {
    return 2 * this.#limits.failureLimit;
  }
}
