// Breakers of pairs: two instances that serve well with others may fail with each other, because the network between
// them is cut or one wedges the other. Only two kinds of pairs are remembered: pairs with failures, and pairs that must
// be probed before they get users' requests (`expect`).
import { Breaker, type BreakerLimits, type Verdict } from "./breaker.ts";

export interface PairEntry {
  readonly prefillId: string;
  readonly decodeId: string;
  readonly breaker: Breaker;
  /** KV had moved between the two before they failed. */
  wasWarm: boolean;
}

/** Above this limit the oldest pair is forgotten. */
const PAIR_LIMIT = 4_096;

export class Pairs {
  readonly #limits: BreakerLimits;
  readonly #entries = new Map<string, PairEntry>();
  /** Pairs between which KV has moved since both of them started. */
  readonly #warm = new Set<string>();

  constructor(limits: BreakerLimits) {
    this.#limits = limits;
  }

  /** Whether any pair is remembered. Usually none is. */
  get any(): boolean {
    return this.#entries.size > 0;
  }

  /** The pair's breaker if the pair is out. */
  outOf(prefillId: string, decodeId: string): Breaker | undefined {
    if (this.#entries.size === 0) return undefined;
    const breaker = this.#entries.get(keyOf(prefillId, decodeId))?.breaker;
    return breaker?.open === true ? breaker : undefined;
  }

  /** Whether KV has moved between the two: their connection is set up. */
  isWarm(prefillId: string, decodeId: string): boolean {
    return this.#warm.has(keyOf(prefillId, decodeId));
  }

  /** Scores a leg of the pair that has ended. Returns true if that opened the breaker. */
  judge(prefillId: string, decodeId: string, verdict: Verdict, nowMs: number): boolean {
    const key = keyOf(prefillId, decodeId);
    if (verdict === "good") this.#warmed(key);
    // Only failures are remembered, and most pairs never have one.
    if (!this.#entries.has(key) && (verdict === "good" || verdict === "none")) return false;
    const entry = this.#entry(prefillId, decodeId);
    const { breaker } = entry;
    if (verdict === "bad" || verdict === "wedged") entry.wasWarm = this.#warm.delete(key) || entry.wasWarm;
    const opened = breaker.judge(verdict, nowMs);
    if (breaker.spotless) this.#entries.delete(key);
    return opened;
  }

  /** Takes a failure back, which was the request's own. Returns true if that closed the breaker. */
  pardon(prefillId: string, decodeId: string): boolean {
    const key = keyOf(prefillId, decodeId);
    const entry = this.#entries.get(key);
    if (entry === undefined) return false;
    if (entry.wasWarm) this.#warmed(key);
    const closed = entry.breaker.pardon();
    if (entry.breaker.spotless) this.#entries.delete(key);
    return closed;
  }

  /** Takes the pair out after a failed probe: both instances work, but not with each other. */
  probeFailed(
    prefillId: string,
    decodeId: string,
    ...[failure, text, nowMs, isCostly]: Parameters<Breaker["probeFailed"]>
  ): void {
    const { breaker } = this.#entry(prefillId, decodeId);
    breaker.distrust(nowMs);
    breaker.probeFailed(failure, text, nowMs, isCostly);
  }

  /** Keeps users' requests from the pair until a probe has succeeded, unless one already has. */
  expect(prefillId: string, decodeId: string, nowMs: number): void {
    if (this.#warm.has(keyOf(prefillId, decodeId)) || this.outOf(prefillId, decodeId) !== undefined) return;
    this.#entry(prefillId, decodeId).breaker.distrust(nowMs);
  }

  /** Notes a successful probe. Returns true if the pair was out. */
  close(prefillId: string, decodeId: string): boolean {
    const key = keyOf(prefillId, decodeId);
    const { breaker } = this.#entries.get(key) ?? {};
    const closed = breaker?.close() ?? false;
    this.#warmed(key);
    if (breaker?.spotless === true) this.#entries.delete(key);
    return closed;
  }

  /** Pairs that get no users' requests. */
  *open(): Generator<PairEntry> {
    for (const entry of this.#entries.values()) if (entry.breaker.open) yield entry;
  }

  /** Partners with which the instance gets no users' requests. */
  openWith(instanceId: string): number {
    let count = 0;
    for (const { prefillId, decodeId } of this.open())
      if (prefillId === instanceId || decodeId === instanceId) count += 1;
    return count;
  }

  /**
   * Notes that an engine restarted: its connections to others are gone. A pair that is out stays out, with its
   * back-off.
   */
  cool(instanceId: string, nowMs: number): void {
    for (const key of this.#warm) if (names(key, instanceId)) this.#warm.delete(key);
    for (const [key, entry] of this.#entries) {
      if (!names(key, instanceId)) continue;
      entry.wasWarm = false;
      entry.breaker.probeSoon(nowMs);
    }
  }

  /** Forgets an instance that is gone, and whose id will not be used again. */
  forget(instanceId: string): void {
    for (const known of [this.#entries, this.#warm])
      for (const key of known.keys()) if (names(key, instanceId)) known.delete(key);
  }

  #warmed(key: string): void {
    if (this.#warm.size < PAIR_LIMIT) this.#warm.add(key);
  }

  #entry(prefillId: string, decodeId: string): PairEntry {
    const key = keyOf(prefillId, decodeId);
    let entry = this.#entries.get(key);
    if (entry !== undefined) return entry;
    entry = { prefillId, decodeId, breaker: new Breaker(this.#limits), wasWarm: false };
    if (this.#entries.size >= PAIR_LIMIT) this.#entries.delete(this.#entries.keys().next().value!);
    this.#entries.set(key, entry);
    return entry;
  }
}

function keyOf(prefillId: string, decodeId: string): string {
  return `${prefillId}|${decodeId}`;
}

function names(key: string, instanceId: string): boolean {
  return key.split("|").includes(instanceId);
}
