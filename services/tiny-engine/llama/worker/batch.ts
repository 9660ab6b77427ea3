// Continuous batching. A round computes one row for every answer that is running and a bounded number of rows of
// prompts, so a long prompt never holds the others up for longer than that, and prompts share it evenly.
import { MAX_ROWS, type Model, type Row } from "../model.ts";
import type { Add, GivenKv, GivenToken, Report } from "./messages.ts";
import { Sequence } from "./sequence.ts";

/**
 * Prompt rows of a round while answers run. More would make tokens wait; fewer waste the kernel, which takes four at a
 * time.
 */
export const PROMPT_ROWS_BESIDE_ANSWERS = 16;
/** Prompt rows of a round while no answer runs. */
export const PROMPT_ROWS_ALONE = MAX_ROWS;
/** Least share of one prompt in a round. */
const MIN_SHARE_ROWS = 8;

export type Batch = ReturnType<typeof createBatch>;

/** Rows of one sequence in one round. */
interface Part {
  readonly sequence: Sequence;
  readonly rows: readonly Row[];
}

export function createBatch(model: Model) {
  const sequences = new Map<number, Sequence>();
  /** Prompts take turns in being first, because the last of them may get nothing in a round. */
  let turn = 0;

  const plan = (nowMs: number): Part[] => {
    const answers: Sequence[] = [];
    const prompts: Sequence[] = [];
    for (const sequence of sequences.values()) {
      if (sequence.notBeforeMs > nowMs) continue;
      (sequence.rowsLeft === 1 ? answers : prompts).push(sequence);
    }
    const parts = answers.map((sequence) => ({ sequence, rows: sequence.rows(1) }));
    let budget = answers.length > 0 ? PROMPT_ROWS_BESIDE_ANSWERS : PROMPT_ROWS_ALONE;
    const share = Math.max(MIN_SHARE_ROWS, Math.floor(budget / Math.max(1, prompts.length)));
    const first = prompts.length === 0 ? 0 : turn++ % prompts.length;
    for (let index = 0; index < prompts.length && budget > 0; index++) {
      const sequence = prompts[(first + index) % prompts.length]!;
      const count = Math.min(share, budget, sequence.rowsLeft);
      parts.push({ sequence, rows: sequence.rows(count) });
      budget -= count;
    }
    return parts;
  };

  /** Frees a sequence in any state. Has no effect if the sequence has ended. */
  const drop = (id: number): void => {
    sequences.get(id)?.free();
    sequences.delete(id);
  };

  return {
    add: (add: Add) => void sequences.set(add.id, new Sequence(add, model)),
    drop,
    /** Computes the sequences that are ready. Null: none is; `wakeMs` says when one will be. */
    round(nowMs: number): Report | null {
      const parts = plan(nowMs);
      if (parts.length === 0) return null;
      const tokens = compute(model, parts, nowMs);
      const kv: GivenKv[] = [];
      for (const { sequence, rows } of parts) {
        sequence.computed += rows.length;
        const given = sequence.takeKv();
        if (given !== null) kv.push(given);
      }
      for (const { id, finish } of tokens) if (finish !== null) drop(id);
      return { kind: "report", rows: parts.reduce((sum, { rows }) => sum + rows.length, 0), kv, tokens };
    },
    /** When a slowed sequence may go on. Infinity: none waits. */
    wakeMs: () => [...sequences.values()].reduce((least, { notBeforeMs }) => Math.min(least, notBeforeMs), Infinity),
    get size(): number {
      return sequences.size;
    },
  };
}

/** A row and the use of its logits. */
interface Job {
  readonly sequence: Sequence;
  readonly row: Row;
  readonly use: "none" | "prompt" | "next";
}

/** Runs the parts through the model, rows without logits first, and draws the tokens that are due. */
function compute(model: Model, parts: readonly Part[], nowMs: number): GivenToken[] {
  const silent: Job[] = [];
  const speaking: Job[] = [];
  for (const { sequence, rows } of parts) {
    const all = sequence.wantsPromptLogprobs;
    for (const row of rows) {
      const isLast = row.position === sequence.tokens.length - 1;
      if (isLast) speaking.push({ sequence, row, use: "next" });
      else if (all) speaking.push({ sequence, row, use: "prompt" });
      else silent.push({ sequence, row, use: "none" });
    }
  }
  const jobs = [...silent, ...speaking];
  const tokens: GivenToken[] = [];
  for (let at = 0; at < jobs.length; at += MAX_ROWS) {
    const slice = jobs.slice(at, at + MAX_ROWS);
    const logitsOf = Math.min(slice.length, Math.max(0, silent.length - at));
    const logits = model.forward(
      slice.map(({ row }) => row),
      logitsOf,
    );
    slice.slice(logitsOf).forEach(({ sequence, row, use }, index) => {
      const own = logits.subarray(index * model.shape.vocab, (index + 1) * model.shape.vocab);
      if (use === "prompt") sequence.takePromptRow(own, row.position);
      else tokens.push(sequence.takeLastRow(own, nowMs));
    });
  }
  return tokens;
}
