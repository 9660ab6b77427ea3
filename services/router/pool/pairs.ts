// Breakers of pairs: two instances that serve well with others may fail with each other, because the network between
// them is cut or one wedges the other. Only pairs with something against them are remembered, and those that must be
// probed before users come (`expect`).
import { Breaker, type BreakerLimits, type ProbeFailure, type Verdict } from "./breaker.ts";

export interface PairEntry {
  readonly prefillId: string;
  readonly decodeId: string;
  readonly breaker: Breaker;
}

/** Above it the oldest is forgotten. */
const PAIR_LIMIT = 4_096;

export class Pairs {
  readonly #limits: BreakerLimits;
  readonly #entries = new Map<string, PairEntry>();
  /** Pairs between which KV has moved since both of them started. */
  readonly #warm = new Set<string>();

  constructor(limits: BreakerLimits) {
    this.#limits = limits;
  }

  /** Whether any pair is remembered: none is on most days. */
  get any(): boolean {
    return this.#entries.size > 0;
  }

  /** Its breaker, where the pair is out. */
  outOf(prefillId: string, decodeId: string): Breaker | undefined {
    if (this.#entries.size === 0) return undefined;
    const breaker = this.#entries.get(keyOf(prefillId, decodeId))?.breaker;
    return breaker?.open === true ? breaker : undefined;
  }

  /** Whether KV has moved between the two: their connection is set up. */
  isWarm(prefillId: string, decodeId: string): boolean {
    return this.#warm.has(keyOf(prefillId, decodeId));
  }

  /** A leg of the pair has ended. True where that opened its breaker. */
  judge(prefillId: string, decodeId: string, verdict: Verdict, nowMs: number): boolean {
    const key = keyOf(prefillId, decodeId);
    if (verdict === "good") this.#warmed(key);
    else if (verdict !== "none") this.#warm.delete(key);
    const entry = this.#entries.get(key);
    // All that is remembered is failures; most pairs never have one.
    if (entry === undefined && (verdict === "good" || verdict === "none")) return false;
    const { breaker } = entry ?? this.#add(prefillId, decodeId);
    const opened = breaker.judge(verdict, nowMs);
    if (breaker.spotless) this.#entries.delete(key);
    return opened;
  }

  /** A probe of the pair failed, though both of them work with others: they are out with each other. */
  probeFailed(prefillId: string, decodeId: string, failure: ProbeFailure, text: string, nowMs: number): void {
    const { breaker } = this.#entries.get(keyOf(prefillId, decodeId)) ?? this.#add(prefillId, decodeId);
    breaker.distrust(nowMs);
    breaker.probeFailed(failure, text, nowMs);
  }

  /** The pair takes no users before a probe has succeeded, unless one has. */
  expect(prefillId: string, decodeId: string, nowMs: number): void {
    if (this.#warm.has(keyOf(prefillId, decodeId)) || this.outOf(prefillId, decodeId) !== undefined) return;
    (this.#entries.get(keyOf(prefillId, decodeId)) ?? this.#add(prefillId, decodeId)).breaker.distrust(nowMs);
  }

  /** A probe succeeded. True where the pair was out. */
  close(prefillId: string, decodeId: string): boolean {
    const key = keyOf(prefillId, decodeId);
    const { breaker } = this.#entries.get(key) ?? {};
    const closed = breaker?.close() ?? false;
    this.#warmed(key);
    if (breaker?.spotless === true) this.#entries.delete(key);
    return closed;
  }

  /** Those that take no users. */
  *open(): Generator<PairEntry> {
    for (const entry of this.#entries.values()) if (entry.breaker.open) yield entry;
  }

  /** Its engine started again: what it had set up with others is gone. A pair that is out stays out, with its back-off. */
  cool(instanceId: string, nowMs: number): void {
    for (const key of this.#warm) if (key.split("|").includes(instanceId)) this.#warm.delete(key);
    for (const entry of this.#entries.values()) if (names(entry, instanceId)) entry.breaker.probeSoon(nowMs);
  }

  /** An instance is gone, and its id with it. */
  forget(instanceId: string): void {
    for (const [key, entry] of this.#entries) if (names(entry, instanceId)) this.#entries.delete(key);
    for (const key of this.#warm) if (key.split("|").includes(instanceId)) this.#warm.delete(key);
  }

  #warmed(key: string): void {
    if (this.#warm.size < PAIR_LIMIT) this.#warm.add(key);
  }

  #add(prefillId: string, decodeId: string): PairEntry {
    const entry = { prefillId, decodeId, breaker: new Breaker(this.#limits) };
    if (this.#entries.size >= PAIR_LIMIT) this.#entries.delete(this.#entries.keys().next().value!);
    this.#entries.set(keyOf(prefillId, decodeId), entry);
    return entry;
  }
}

function names({ prefillId, decodeId }: PairEntry, instanceId: string): boolean {
  return prefillId === instanceId || decodeId === instanceId;
}

function keyOf(prefillId: string, decodeId: string): string {
  return `${prefillId}|${decodeId}`;
}
