// A circuit breaker for one instance or one pair. A closed breaker passes users' legs and keeps a score; an open one
// passes none. Only a probe, a tiny request of the router's own, finds out whether an open breaker may close, never a
// user's leg. One successful probe closes it. If answers must be proven before users get them, the breaker starts open.
// Source of the pattern: Nygard, Release It!, 2007. Probes replace the half-open state, as in Envoy's active health
// checks.

/**
 * What the end of a leg says about an instance or a pair. `none`: nothing, for example because the client left.
 * `wedged`: it took the work and then stalled; one such leg is enough, because the next user would wait as long in
 * vain.
 */
export type Verdict = "good" | "none" | "bad" | "wedged";

/**
 * `failing`: legs of users fail. `outrun`: another instance answered a leg for which this one showed no progress.
 * `unproven`: no probe has succeeded since the engine started.
 */
export type OpenBecause = "failing" | "outrun" | "unproven";

/**
 * How a probe failed. `refused`: quickly, with an error; the fault may be repaired any second. `late` or `wrong`: no
 * answer in time, or not the answer that the KV gives; frequent probes would only load an engine that can't answer.
 */
export type ProbeFailure = "refused" | "late" | "wrong";

export interface BreakerLimits {
  /** Failed legs in a row that open the breaker. One failure weighs as much as two successes. */
  readonly failureLimit: number;
  /** Pause between two probes, before any back-off. */
  readonly probeEveryMs: number;
}

export const BREAKER_LIMITS: BreakerLimits = { failureLimit: 5, probeEveryMs: 500 };

/** Failed probes double the pause up to this limit. */
const PAUSE_LIMIT_MS: Readonly<Record<ProbeFailure, number>> = { refused: 1_000, late: 30_000, wrong: 30_000 };
/** The same where each failed probe may leave KV in decode for good (P2P NCCL), at least. */
const COSTLY_PAUSE_LIMIT_MS = 10_000;
/** What a failure adds to the score. A success takes 1 off. */
const FAILURE_SCORE = 2;
/** The weight of a failure halves in this time. */
const HALF_LIFE_MS = 5_000;

const FAILING = "Legs failed on it. It gets no requests until a probe succeeds.";
const OUTRUN = "It made no progress with a request that another instance then answered.";
const UNPROVEN = "No probe has succeeded with it yet.";

type State =
  | { readonly kind: "closed"; score: number }
  | {
      readonly kind: "open";
      readonly because: OpenBecause;
      text: string;
      /** The score with which it opened. */
      readonly score: number;
      probeAtMs: number;
      pauseMs: number;
      /** How the last probe failed. */
      failure: ProbeFailure | undefined;
      /** Its answers may be wrong: a probe got a wrong one, or the engine is new and must be proven. */
      condemned: boolean;
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

  /** Undefined while the breaker is closed. */
  get because(): OpenBecause | undefined {
    return this.#state.kind === "open" ? this.#state.because : undefined;
  }

  /** Whether it must stay open even if it takes out the last of a side: the answers may be wrong. */
  get condemned(): boolean {
    return this.#state.kind === "open" && this.#state.condemned;
  }

  /** Open, and no probe has failed since: the next one decides. */
  get isUntried(): boolean {
    return this.#state.kind === "open" && this.#state.failure === undefined;
  }

  /** Why the breaker is open, in a sentence for people that includes the last probe's error. */
  get text(): string {
    return this.#state.kind === "open" ? this.#state.text : "";
  }

  /** Closed, with no failure on its score: the breaker may be discarded. */
  get spotless(): boolean {
    return this.#state.kind === "closed" && this.#state.score === 0;
  }

  /** Scores a user's leg that has ended. Returns true if that opened the breaker. An open one only adds to its suspicion. */
  judge(verdict: Verdict, nowMs: number): boolean {
    if (verdict === "none") return false;
    if (verdict === "good") {
      if (this.#state.kind === "closed") this.#state.score = Math.max(0, this.#state.score - 1);
      return false;
    }
    this.#suspicion = this.suspicion(nowMs) + 1;
    this.#suspectedAtMs = nowMs;
    if (this.#state.kind === "open") return false;
    this.#state.score += verdict === "wedged" ? this.#opensAt : FAILURE_SCORE;
    if (this.#state.score < this.#opensAt) return false;
    this.#open("failing", FAILING, nowMs + this.#limits.probeEveryMs, this.#state.score);
    return true;
  }

  /**
   * Takes a `bad` verdict back: the request's own body was at fault. Returns true if that closed the breaker, which is
   * only possible before a probe has failed.
   */
  pardon(): boolean {
    this.#suspicion = Math.max(0, this.#suspicion - 1);
    const state = this.#state;
    if (state.kind === "closed") {
      state.score = Math.max(0, state.score - FAILURE_SCORE);
      return false;
    }
    if (state.because !== "failing" || state.failure !== undefined) return false;
    const score = state.score - FAILURE_SCORE;
    if (score >= this.#opensAt) return false;
    this.#state = { kind: "closed", score: Math.max(0, score) };
    return true;
  }

  /**
   * Opens the breaker after the engine started or was replaced: only a probe can show whether its answers are right. An
   * earlier verdict outlives the engine: after late or wrong probes the back-off runs on, because otherwise each start
   * would be followed by a probe that wedges the engine again.
   */
  distrust(nowMs: number): void {
    const state = this.#state;
    const isOnlyOutrun = state.kind === "open" && state.because === "outrun" && state.failure === undefined;
    if (state.kind === "closed" || isOnlyOutrun) return this.#open("unproven", UNPROVEN, nowMs);
    state.condemned = true;
    this.probeSoon(nowMs);
  }

  /** Opens the breaker until a probe succeeds. A leg that ends well on the instance is as good as a probe. */
  outrun(nowMs: number): boolean {
    if (this.#state.kind === "open") return false;
    this.#open("outrun", OUTRUN, nowMs + this.#limits.probeEveryMs);
    return true;
  }

  /** Notes that the engine may be a new one that needs no proof: that the last one was outrun says nothing about it. */
  renew(nowMs: number): void {
    if (this.because === "outrun") this.close();
    else this.probeSoon(nowMs);
  }

  /** Recent failures, fading. Policies count them as load, because an instance that fails fast always looks idle. */
  suspicion(nowMs: number): number {
    if (this.#suspicion === 0) return 0;
    const left = this.#suspicion * 2 ** (-(nowMs - this.#suspectedAtMs) / HALF_LIFE_MS);
    if (left < 0.1) this.#suspicion = 0;
    return left < 0.1 ? 0 : left;
  }

  /** When a probe is due; Infinity while the breaker is closed. */
  get dueMs(): number {
    return this.#state.kind === "open" ? this.#state.probeAtMs : Infinity;
  }

  /** Notes that a probe is sent. */
  probing(nowMs: number): void {
    if (this.#state.kind === "open") this.#state.probeAtMs = nowMs + this.#state.pauseMs;
  }

  /**
   * Notes a failed probe. The next one is due after a longer pause.
   *
   * @param text One sentence.
   * @param isCostly Whether it may have left KV behind for good.
   */
  probeFailed(failure: ProbeFailure, text: string, nowMs: number, isCostly = false): void {
    const state = this.#state;
    if (state.kind === "closed") return;
    const leastMs = isCostly ? COSTLY_PAUSE_LIMIT_MS : 0;
    const limitMs = Math.max(this.#limits.probeEveryMs, PAUSE_LIMIT_MS[failure], leastMs);
    state.pauseMs = Math.min(limitMs, 2 * state.pauseMs);
    state.probeAtMs = nowMs + state.pauseMs;
    state.failure = failure;
    state.condemned ||= failure === "wrong";
    state.text = text;
  }

  /** Makes a probe due now, because something changed: a refusal says nothing any more. Late or wrong probes wait out their back-off. */
  probeSoon(nowMs: number): void {
    const state = this.#state;
    if (state.kind !== "open" || (state.failure !== undefined && state.failure !== "refused")) return;
    state.probeAtMs = nowMs;
    state.failure = undefined;
  }

  /** Closes after a successful probe, on probation: the next failure opens it again. Returns true if it was open. */
  close(): boolean {
    if (this.#state.kind === "closed") return false;
    this.#state = { kind: "closed", score: this.#state.because === "failing" ? this.#opensAt - FAILURE_SCORE : 0 };
    return true;
  }

  #open(because: OpenBecause, text: string, probeAtMs: number, score = 0): void {
    const pauseMs = this.#limits.probeEveryMs;
    const condemned = because === "unproven";
    this.#state = { kind: "open", because, text, score, probeAtMs, pauseMs, failure: undefined, condemned };
  }

  get #opensAt(): number {
    return 2 * this.#limits.failureLimit;
  }
}
