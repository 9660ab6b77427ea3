// Times of the steps of one leg, for its receipt and for deadline errors that say where the time went.
import type { LegDraft } from "../request/receipt.ts";
import type { LegEvent, LegState, LegTraits } from "./protocol.ts";

export class LegTimes {
  readonly #draft: LegDraft;
  readonly #decodeFirst: boolean;
  readonly #beganMs: number;
  /** When prefill was called. */
  #prefillCalledMs: number;
  /** When prefill answered. 0 before. */
  #prefilledMs: number;
  /** When the first token arrived. 0 before. */
  #firstMs = 0;
  #reserved = false;

  constructor(draft: LegDraft, { decodeFirst, unpaired }: LegTraits, nowMs: number) {
    this.#draft = draft;
    this.#decodeFirst = decodeFirst;
    this.#beganMs = this.#prefillCalledMs = nowMs;
    this.#prefilledMs = unpaired === true ? nowMs : 0;
  }

  /** @param before The state in which `event` arrived. */
  note(before: LegState, event: LegEvent, nowMs: number): void {
    if (event.kind === "reserved" && before.kind === "reserving") {
      this.#reserved = true;
      this.#draft.reserveMs = nowMs - this.#beganMs;
      this.#prefillCalledMs = nowMs;
    } else if (event.kind === "prefillDone") {
      this.#draft.prefillMs = nowMs - this.#prefillCalledMs;
      this.#prefilledMs = nowMs;
    } else if (event.kind === "decodeChunk" && before.kind !== "settling") {
      this.#draft.transferMs = nowMs - this.#prefilledMs;
      this.#firstMs = nowMs;
    }
  }

  /** Notes the end of the leg, whatever its outcome. */
  ended(nowMs: number): void {
    if (this.#firstMs > 0) this.#draft.decodeMs = nowMs - this.#firstMs;
  }

  /** "reserve 1 ms, prefill 210 ms, transfer 12 ms" */
  where(nowMs: number): string {
    const parts: string[] = [];
    const add = (name: string, fromMs: number, toMs: number): void => {
      if (fromMs > 0) parts.push(`${name} ${Math.round((toMs > 0 ? toMs : nowMs) - fromMs)} ms`);
    };
    if (this.#decodeFirst) add("reserve", this.#beganMs, this.#reserved ? this.#prefillCalledMs : 0);
    if (!this.#decodeFirst || this.#reserved) add("prefill", this.#prefillCalledMs, this.#prefilledMs);
    add("transfer", this.#prefilledMs, this.#firstMs);
    add("decode", this.#firstMs, 0);
    return parts.join(", ");
  }
}
