// Breakers of pairs: two instances that serve well with others may fail with each other, because the network between
// them is cut or one wedges the other. Only pairs with something against them are remembered.
import { Breaker, type BreakerLimits, type Verdict } from "./breaker.ts";

export interface PairEntry {
  readonly prefillId: string;
  readonly decodeId: string;
  readonly breaker: Breaker;
}

/** Above it the oldest is forgotten. */
const PAIR_LIMIT = 4_096;

export function pairKey(prefillId: string, decodeId: string): string {
  return `${prefillId}|${decodeId}`;
}

export class Pairs {
  readonly #limits: BreakerLimits;
  readonly #entries = new Map<string, PairEntry>();

  constructor(limits: BreakerLimits) {
    this.#limits = limits;
  }

  /** A leg of the pair has ended. True where that opened its breaker. */
  judge(prefillId: string, decodeId: string, verdict: Verdict, nowMs: number): boolean {
    const key = pairKey(prefillId, decodeId);
    let entry = this.#entries.get(key);
    if (entry === undefined) {
      // All that is remembered is failures; most pairs never have one.
      if (verdict === "good" || verdict === "none") return false;
      entry = { prefillId, decodeId, breaker: new Breaker(this.#limits) };
      if (this.#entries.size >= PAIR_LIMIT) this.#entries.delete(this.#entries.keys().next().value!);
      this.#entries.set(key, entry);
    }
    const opened = entry.breaker.judge(verdict, nowMs);
    if (entry.breaker.spotless) this.#entries.delete(key);
    return opened;
  }

  /** A canary came through. True where the pair was out. */
  close(prefillId: string, decodeId: string): boolean {
    return this.#entries.get(pairKey(prefillId, decodeId))?.breaker.close() ?? false;
  }

  get someBroken(): boolean {
    for (const { breaker } of this.#entries.values()) if (breaker.open) return true;
    return false;
  }

  /** Keys of those that get no leg. */
  broken(): ReadonlySet<string> {
    const keys = new Set<string>();
    for (const [key, { breaker }] of this.#entries) if (breaker.open) keys.add(key);
    return keys;
  }

  open(): PairEntry[] {
    return [...this.#entries.values()].filter(({ breaker }) => breaker.open);
  }

  /** An instance is gone, and its id with it. */
  forget(instanceId: string): void {
    for (const [key, { prefillId, decodeId }] of this.#entries) {
      if (prefillId === instanceId || decodeId === instanceId) this.#entries.delete(key);
    }
  }
}
