// Times of the parts of one leg, for its receipt and for deadline errors that say where the time went.
import type { LegDraft } from "../request/receipt.ts";
import type { LegEvent, LegState, LegTraits, Phase } from "./protocol.ts";

const PARTS: readonly Phase[] = ["reserve", "prefill", "transfer", "decode"];

export class LegTimes {
  readonly #draft: LegDraft;
  /** Indices into PARTS: the leg's first part, and the one that runs. */
  readonly #first: number;
  #at: number;
  /** When the running part began. */
  #sinceMs: number;

  constructor(draft: LegDraft, { decodeFirst, unpaired }: LegTraits, nowMs: number) {
    this.#draft = draft;
    this.#at = this.#first = PARTS.indexOf(decodeFirst ? "reserve" : unpaired === true ? "transfer" : "prefill");
    this.#sinceMs = nowMs;
  }

  /** @param before The state in which `event` arrived. */
  note(before: LegState, event: LegEvent, nowMs: number): void {
    if (event.kind === "reserved" && before.kind === "reserving") this.#draft.reserveMs = nowMs - this.#sinceMs;
    else if (event.kind === "prefillDone") this.#draft.prefillMs = nowMs - this.#sinceMs;
    else if (event.kind === "decodeChunk" && before.kind !== "settling") this.#draft.transferMs = nowMs - this.#sinceMs;
    else return;
    this.#at += 1;
    this.#sinceMs = nowMs;
  }

  /** Notes the end of the leg, whatever its outcome. */
  ended(nowMs: number): void {
    if (PARTS[this.#at] === "decode") this.#draft.decodeMs = nowMs - this.#sinceMs;
  }

  /** "reserve 1 ms, prefill 210 ms, transfer 12 ms" */
  where(nowMs: number): string {
    return PARTS.slice(this.#first, this.#at + 1)
      .map((part, index, { length }) => {
        const ms = index === length - 1 ? nowMs - this.#sinceMs : this.#draft[`${part}Ms`];
        return `${part} ${Math.round(ms)} ms`;
      })
      .join(", ");
  }
}
