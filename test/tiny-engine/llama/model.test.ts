import assert from "node:assert/strict";
import { readGguf } from "../../../services/tiny-engine/llama/gguf.ts";
import {
  createModel,
  MAX_ROWS,
  type BlockTable,
  type Model,
  type Row,
} from "../../../services/tiny-engine/llama/model.ts";
import { KV_BLOCK_TOKENS } from "../../../services/tiny-engine/llama/shape.ts";
import { randomGguf, SMALL, type RandomModel } from "../../../clients/common/random-gguf.ts";
import { referenceLogits } from "./reference.ts";

const TINY: RandomModel = {
  layers: 2,
  dim: 64,
  heads: 4,
  kvHeads: 2,
  ffDim: 96,
  vocab: 96,
  maxContext: 256,
  type: "Q8_0",
  seed: 3,
  speaks: false,
};

function model(shape: RandomModel): Model {
  return createModel(readGguf(randomGguf(shape)), { kvBytes: 32 << 20 });
}

function prompt(length: number, vocab: number, seed = 1): number[] {
  return Array.from({ length }, (_, i) => (i * i * 31 + i * 7 * seed + seed) % vocab);
}

/** Rows for `tokens` from `from` on, with the blocks they need. */
function rowsOf(m: Model, table: BlockTable, tokens: readonly number[], from = 0): Row[] {
  return tokens.map((token, index) => {
    const position = from + index;
    if (Math.floor(position / KV_BLOCK_TOKENS) === table.blocks.length) m.grow(table);
    return { token, position, table };
  });
}

/** Logits after the last token, prefilled in chunks of `chunk` rows. */
function lastLogits(m: Model, tokens: readonly number[], chunk = MAX_ROWS): Float32Array {
  const table = m.takeTable();
  let logits = new Float32Array();
  for (let at = 0; at < tokens.length; at += chunk) {
    const rows = rowsOf(m, table, tokens.slice(at, at + chunk), at);
    logits = m.forward(rows, rows.length - 1).slice();
  }
  m.freeTable(table);
  return logits;
}

function greedy(m: Model, tokens: readonly number[], count: number): number[] {
  const table = m.takeTable();
  const out: number[] = [];
  let rows = rowsOf(m, table, tokens);
  for (let i = 0; i < count; i++) {
    const logits = m.forward(rows, rows.length - 1);
    const best = logits.indexOf(logits.reduce((most, value) => Math.max(most, value)));
    out.push(best);
    rows = rowsOf(m, table, [best], tokens.length + i);
  }
  m.freeTable(table);
  return out;
}

describe("the forward pass", () => {
  for (const [type, tolerance] of [
    ["F32", 1e-4],
    ["F16", 1e-4],
    ["Q8_0", 2e-2],
  ] as const) {
    it(`agrees with a plain implementation in doubles for ${type} weights`, () => {
      const shape = { ...TINY, type };
      const gguf = readGguf(randomGguf(shape));
      const m = createModel(gguf, { kvBytes: 1 << 20 });
      for (const length of [1, 2, 16, 17, 40]) {
        const tokens = prompt(length, shape.vocab);
        const expected = referenceLogits(gguf, m.shape, tokens);
        lastLogits(m, tokens).forEach((logit, token) => {
          const error = Math.abs(logit - expected[token]!);
          assert.ok(
            error <= tolerance * Math.max(1, Math.abs(expected[token]!)),
            `length ${length}, token ${token}: off by ${error}`,
          );
        });
      }
    });
  }

  it("gives the same bits however a prompt is cut into chunks", () => {
    const m = model(TINY);
    const tokens = prompt(61, TINY.vocab);
    const whole = lastLogits(m, tokens);
    for (const chunk of [1, 2, 3, 4, 5, 15, 16, 17, 33])
      assert.deepEqual(lastLogits(m, tokens, chunk), whole, `chunks of ${chunk}`);
  });

  it("gives the same bits alone and in company", () => {
    const m = model(TINY);
    const [a, b, c] = [prompt(20, TINY.vocab, 1), prompt(33, TINY.vocab, 2), prompt(7, TINY.vocab, 3)];
    const alone = [a, b, c].map((tokens) => lastLogits(m, tokens));
    const tables = [a, b, c].map(() => m.takeTable());
    const all = [a, b, c].map((tokens, index) => rowsOf(m, tables[index]!, tokens));
    m.forward(
      all.flatMap((rows) => rows.slice(0, -1)),
      all.flat().length - 3,
    );
    const together = m.forward(
      all.map((rows) => rows.at(-1)!),
      0,
    );
    alone.forEach((logits, index) => {
      assert.deepEqual(together.slice(index * TINY.vocab, (index + 1) * TINY.vocab), logits);
    });
  });

  it("continues from KV blocks that were copied from another engine, to the same bits", () => {
    const [prefill, decode] = [model(TINY), model(TINY)];
    const tokens = prompt(37, TINY.vocab);
    const source = prefill.takeTable();
    prefill.forward(rowsOf(prefill, source, tokens.slice(0, -1)), 36);
    const target = decode.takeTable();
    const rows = rowsOf(decode, target, tokens);
    source.blocks.forEach((block, index) => decode.blockBytes(target.blocks[index]!).set(prefill.blockBytes(block)));
    assert.deepEqual(decode.forward([rows.at(-1)!], 0).slice(), lastLogits(prefill, tokens));
  });

  it("writes these tokens on every version of Node", () => {
    assert.deepEqual(greedy(model(SMALL), prompt(50, SMALL.vocab), 24), GOLDEN);
  });

  it("takes KV blocks up to its limit, and reuses freed ones", () => {
    const m = createModel(readGguf(randomGguf(TINY)), { kvBytes: 40_000 });
    const limit = m.freeBlocks;
    const table = m.takeTable();
    for (let blocks = 0; blocks < limit; blocks++) assert.ok(m.grow(table));
    assert.equal(m.grow(table), false);
    const [...taken] = table.blocks;
    m.freeTable(table);
    assert.equal(m.freeBlocks, limit);
    const next = m.takeTable();
    m.grow(next);
    assert.ok(taken.includes(next.blocks[0]!));
  });
});

const GOLDEN = [
  865, 27, 550, 692, 779, 779, 815, 386, 383, 780, 250, 594, 819, 819, 426, 618, 576, 406, 406, 831, 869, 364, 951, 747,
];
