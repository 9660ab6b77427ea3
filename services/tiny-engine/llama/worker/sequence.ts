// One sequence in the worker: its tokens, the extent of its KV, and the parameters of its next token.
import type { TokenLogprobs } from "../../engine.ts";
import type { BlockTable, Model } from "../model.ts";
import { logprobs, sample } from "../sampling.ts";
import { KV_BLOCK_TOKENS } from "../shape.ts";
import { packRows, unpackRows } from "./kv-rows.ts";
import type { Add, GivenKv, GivenToken } from "./messages.ts";

export class Sequence {
  readonly add: Add;
  readonly table: BlockTable;
  readonly #model: Model;
  /** Prompt and answer so far. */
  readonly tokens: number[];
  /** Tokens whose KV exists. */
  computed: number;
  /** No token before this time: a slowed sequence. Infinity: a stalled one. */
  notBeforeMs: number;
  #givenBlocks = 0;
  readonly #promptSet: ReadonlySet<number>;
  readonly #counts = new Map<number, number>();
  #promptLogprobs: (TokenLogprobs | null)[] | null;

  constructor(add: Add, model: Model) {
    this.add = add;
    this.#model = model;
    this.tokens = [...add.prompt];
    this.table = model.takeTable();
    // The row of the last prompt token is always computed here: its logits give the first token.
    this.computed = add.kv === null ? 0 : add.prompt.length - 1;
    this.#promptSet = add.sampling.repetitionPenalty === 1 ? new Set() : new Set(add.prompt);
    this.#promptLogprobs = add.promptLogprobs === null ? null : [null];
    this.notBeforeMs = add.pace?.stallAfterTokens === 0 ? Infinity : 0;
    add.kv?.forEach((packed, index) => {
      this.#reach(index * KV_BLOCK_TOKENS);
      unpackRows(model.blockBytes(this.table.blocks[index]!), packed, model.shape);
    });
  }

  /** Rows to compute before the next token. 1: only the last token's row. */
  get rowsLeft(): number {
    return this.tokens.length - this.computed;
  }

  get wantsPromptLogprobs(): boolean {
    return this.#promptLogprobs !== null && this.#promptLogprobs.length < this.add.prompt.length;
  }

  /** Takes the blocks that `position` needs. */
  #reach(position: number): void {
    while (this.table.blocks.length * KV_BLOCK_TOKENS <= position) {
      // The engine admits a sequence only if its blocks are available.
      if (!this.#model.grow(this.table)) throw new Error("the KV cache is full, although its blocks were counted");
    }
  }

  /** @returns The next `count` rows. */
  rows(count: number): { token: number; position: number; table: BlockTable }[] {
    this.#reach(this.computed + count - 1);
    return Array.from({ length: count }, (_, index) => {
      const position = this.computed + index;
      return { token: this.tokens[position]!, position, table: this.table };
    });
  }

  /** A row of the prompt: records the model's logprobs for the prompt token that follows. */
  takePromptRow(logits: Float32Array, position: number): void {
    this.#promptLogprobs!.push(logprobs(logits, this.add.prompt[position + 1]!, this.add.promptLogprobs!));
  }

  /** The last row: draws the next token. @param logits Overwritten. */
  takeLastRow(logits: Float32Array, nowMs: number): GivenToken {
    const { id, prompt, sampling, ends } = this.add;
    const outputs = this.tokens.length - prompt.length;
    const raw = sampling.logprobs === null ? null : logits.slice();
    const history = { promptTokens: this.#promptSet, outputCounts: this.#counts };
    const banned = outputs < sampling.minTokens ? ends : [];
    const token = sample(logits, sampling, history, this.tokens.length, banned);
    this.tokens.push(token);
    this.#counts.set(token, (this.#counts.get(token) ?? 0) + 1);
    this.#pace(outputs + 1, nowMs);
    return {
      id,
      token,
      finish: ends.has(token) ? "stop" : outputs + 1 >= sampling.maxTokens ? "length" : null,
      logprobs: raw === null ? null : logprobs(raw, token, sampling.logprobs!),
      promptLogprobs: outputs === 0 ? this.#promptLogprobs : null,
    };
  }

  #pace(outputs: number, nowMs: number): void {
    const { pace } = this.add;
    if (pace === null) return;
    this.notBeforeMs = outputs >= pace.stallAfterTokens ? Infinity : nowMs + pace.extraMsPerToken;
  }

  /** Blocks of the prompt that have become final since the last call. Null: none. */
  takeKv(): GivenKv | null {
    const length = this.add.prompt.length;
    const whole = this.computed >= length;
    const final = whole ? Math.ceil(length / KV_BLOCK_TOKENS) : Math.floor(this.computed / KV_BLOCK_TOKENS);
    if (!this.add.givesKv || final === this.#givenBlocks) return null;
    const blocks: Uint8Array<ArrayBuffer>[] = [];
    for (; this.#givenBlocks < final; this.#givenBlocks++) {
      const rows = Math.min(KV_BLOCK_TOKENS, length - this.#givenBlocks * KV_BLOCK_TOKENS);
      blocks.push(packRows(this.#model.blockBytes(this.table.blocks[this.#givenBlocks]!), rows, this.#model.shape));
    }
    return { id: this.add.id, blocks, last: whole };
  }

  free(): void {
    this.#model.freeTable(this.table);
  }
}
