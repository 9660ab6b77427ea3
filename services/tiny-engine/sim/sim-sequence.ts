// One sequence in the sim: its text, and the scheduler's account of it.
import { Sequence } from "../sequence.ts";
import type { Prose } from "./prose.ts";

export class SimSequence extends Sequence {
  /** Null until the prompt's KV has arrived. */
  prose: Prose | null = null;
  /** Prompt tokens still to compute. After a preemption the answer so far counts again. */
  prefillLeft = this.request.prompt.length;
  /** Tokens of this sequence in the KV cache. */
  kvTokens = 0;
  readonly outputTokens: number[] = [];
  /** The running step's work for this sequence. */
  planned: "nothing" | "prefill" | "decode" = "nothing";
  plannedPrefill = 0;
  /** No token before this time: a slowed sequence. */
  notBeforeMs = 0;
}
