// When things happened on one leg: for its receipt, and for deadline errors that say where the time went.
import type { LegDraft } from "../request/receipt.ts";

export class LegTimes {
  readonly #draft: LegDraft;
  readonly #decodeFirst: boolean;
  readonly #beganMs: number;
  /** When prefill was called. */
  #prefillMs: number;
  /** When prefill had answered; when the first token came. 0 before. */
  #handoverMs = 0;
  #firstMs = 0;
  #reserved = false;

  constructor(draft: LegDraft, decodeFirst: boolean, nowMs: number) {
    this.#draft = draft;
    this.#decodeFirst = decodeFirst;
    this.#beganMs = this.#prefillMs = nowMs;
  }

  /** Decode first: the slot is held. */
  reserved(nowMs: number): void {
    this.#reserved = true;
    this.#draft.reserveMs = nowMs - this.#beganMs;
    this.#prefillMs = nowMs;
  }

  prefilled(nowMs: number): void {
    this.#draft.prefillMs = nowMs - this.#prefillMs;
    this.#handoverMs = nowMs;
  }

  firstToken(nowMs: number): void {
    this.#draft.handoverMs = nowMs - this.#handoverMs;
    this.#firstMs = nowMs;
  }

  ended(nowMs: number): void {
    if (this.#firstMs > 0) this.#draft.decodeMs = nowMs - this.#firstMs;
  }

  /** "reserve 1 ms, prefill 210 ms, transfer 12 ms" */
  where(nowMs: number): string {
    const parts: string[] = [];
    const add = (name: string, fromMs: number, toMs: number): void => {
      if (fromMs > 0) parts.push(`${name} ${Math.round((toMs > 0 ? toMs : nowMs) - fromMs)} ms`);
    };
    if (this.#decodeFirst) add("reserve", this.#beganMs, this.#reserved ? this.#prefillMs : 0);
    if (!this.#decodeFirst || this.#reserved) add("prefill", this.#prefillMs, this.#handoverMs);
    add("transfer", this.#handoverMs, this.#firstMs);
    add("decode", this.#firstMs, 0);
    return parts.join(", ");
  }
}
