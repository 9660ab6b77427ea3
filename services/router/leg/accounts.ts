// What one leg holds of its two instances, in the pool's books: given back once each, with what its end says of them.
import type { Instance } from "../pool/pool.ts";
import type { LegContext } from "./run.ts";
import { verdictOf } from "./blame.ts";
import type { LegOutcome } from "./protocol.ts";
import type { LegEnd, RelayMetrics } from "../request/metrics.ts";

export class LegAccounts {
  readonly #pool: LegContext["pool"];
  readonly #metrics: RelayMetrics;
  #prefill: Instance | undefined;
  #decode: Instance | undefined;
  /** Whether the prefill instance was called; one that wasn't has no outcome. */
  prefillCalled = false;

  constructor(pool: LegContext["pool"], metrics: RelayMetrics) {
    this.#pool = pool;
    this.#metrics = metrics;
  }

  get holdsPrefill(): boolean {
    return this.#prefill !== undefined;
  }

  /** @param tokens Prompt tokens, estimated. */
  holdPrefill(prefill: Instance, tokens: number): void {
    this.#prefill = prefill;
    this.#pool.legStarted(prefill, tokens);
  }

  holdDecode(decode: Instance): void {
    this.#decode = decode;
    this.#pool.legStarted(decode);
  }

  prefillEnded(outcome: LegEnd, verdict = verdictOf(outcome)): void {
    const prefill = this.#prefill;
    if (prefill === undefined) return;
    this.#prefill = undefined;
    if (this.prefillCalled) this.#metrics.leg("prefill", outcome);
    this.#pool.legEnded(prefill, verdict);
  }

  decodeEnded(outcome: LegEnd, verdict = verdictOf(outcome)): void {
    const decode = this.#decode;
    if (decode === undefined) return;
    this.#decode = undefined;
    this.#metrics.leg("decode", outcome);
    this.#pool.legEnded(decode, verdict);
  }

  /** What the leg's outcome says of the two together. */
  judgePair(prefill: Instance | undefined, decode: Instance | undefined, outcome: LegOutcome): void {
    if (prefill === undefined || decode === undefined) return;
    if (outcome.kind === "completed") return this.#pool.pairEnded(prefill, decode, "good");
    if (outcome.kind !== "failed") return;
    const { error, phase } = outcome;
    if (error.code === "kv_transfer_failed") this.#pool.pairEnded(prefill, decode, "bad");
    // Whose fault it is that the KV does not come, nobody here can tell; the two together it is for sure.
    else if (error.code === "leg_stalled" && (phase === "transfer" || phase === "prefill"))
      this.#pool.pairEnded(prefill, decode, "wedged");
  }
}
