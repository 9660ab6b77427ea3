import assert from "node:assert/strict";
import { readGguf } from "../../../services/tiny-engine/llama/gguf.ts";
import { createModel, type Model } from "../../../services/tiny-engine/llama/model.ts";
import {
  createBatch,
  PROMPT_ROWS_ALONE,
  PROMPT_ROWS_BESIDE_ANSWERS,
  type Batch,
} from "../../../services/tiny-engine/llama/worker/batch.ts";
import type { Add } from "../../../services/tiny-engine/llama/worker/messages.ts";
import { GREEDY, tinyFile, tokensOf } from "./engines.ts";

type Over = Partial<Pick<Add, "givesKv" | "pace">> & { readonly maxTokens?: number };

function add(id: number, prompt: readonly number[], { maxTokens = 100, ...over }: Over = {}): Add {
  return {
    kind: "add",
    id,
    prompt,
    ends: new Set(),
    promptLogprobs: null,
    kv: null,
    givesKv: false,
    pace: null,
    sampling: { ...GREEDY, maxTokens },
    ...over,
  };
}

const load = (): Model => createModel(readGguf(tinyFile()), { kvBytes: 32 << 20 });

/** Runs until nothing is left, and gives the tokens by sequence. */
function finish(batch: Batch): Map<number, number[]> {
  const tokens = new Map<number, number[]>();
  while (batch.size > 0) {
    for (const { id, token } of batch.round(0)!.tokens) tokens.set(id, [...(tokens.get(id) ?? []), token]);
  }
  return tokens;
}

describe("a round of the batch", () => {
  it("gives every running answer its token, however long the prompt that is prefilled with them", () => {
    const batch = createBatch(load());
    for (const id of [1, 2, 3]) batch.add(add(id, tokensOf(10, id)));
    batch.round(0);
    batch.add(add(9, tokensOf(1000)));
    let rounds = 0;
    for (;;) {
      const { tokens, rows } = batch.round(0)!;
      rounds++;
      assert.deepEqual(tokens.map(({ id }) => id).slice(0, 3), [1, 2, 3]);
      assert.ok(rows <= 3 + PROMPT_ROWS_BESIDE_ANSWERS, `${rows} rows`);
      if (tokens.some(({ id }) => id === 9)) break;
    }
    assert.equal(rounds, Math.ceil(1000 / PROMPT_ROWS_BESIDE_ANSWERS));
  });

  it("takes larger pieces of a prompt while no answer runs", () => {
    const batch = createBatch(load());
    batch.add(add(1, tokensOf(PROMPT_ROWS_ALONE * 2)));
    assert.deepEqual(batch.round(0)!.tokens, []);
    assert.equal(batch.round(0)!.tokens.length, 1);
  });

  it("shares itself among prompts, so a short one does not wait for a long one", () => {
    const batch = createBatch(load());
    batch.add(add(1, tokensOf(1000)));
    batch.add(add(2, tokensOf(60)));
    let rounds = 0;
    while (!batch.round(0)!.tokens.some(({ id }) => id === 2)) rounds++;
    assert.ok(rounds <= 60 / (PROMPT_ROWS_ALONE / 2), `${rounds} rounds`);
  });

  it("gives a sequence the same tokens regardless of the others", () => {
    const prompts = [1, 7, 16, 33, 100].map((length, index) => tokensOf(length, index + 1));
    const model = load();
    const alone = prompts.map((prompt) => {
      const batch = createBatch(model);
      batch.add(add(1, prompt, { maxTokens: 20 }));
      return finish(batch).get(1);
    });
    const batch = createBatch(model);
    prompts.forEach((prompt, id) => batch.add(add(id, prompt, { maxTokens: 20 })));
    const together = finish(batch);
    assert.deepEqual(
      prompts.map((_, id) => together.get(id)),
      alone,
    );
  });

  it("serves more sequences than the model takes rows at once", () => {
    const batch = createBatch(load());
    for (let id = 0; id < 100; id++) batch.add(add(id, tokensOf(3, id), { maxTokens: 4 }));
    const tokens = finish(batch);
    assert.deepEqual(
      [...tokens.values()].map((list) => list.length),
      new Array(100).fill(4),
    );
  });

  it("leaves no block taken when its sequences have ended or were dropped", () => {
    const model = load();
    const free = model.freeBlocks;
    const batch = createBatch(model);
    batch.add(add(1, tokensOf(100), { maxTokens: 3 }));
    batch.add(add(2, tokensOf(300)));
    batch.round(0);
    batch.drop(2);
    batch.drop(2);
    finish(batch);
    assert.equal(model.freeBlocks, free);
  });

  it("sends a prompt's KV block by block, the last one with its own rows only", () => {
    const batch = createBatch(load());
    batch.add(add(1, tokensOf(100), { maxTokens: 1, givesKv: true }));
    const given = [batch.round(0)!, batch.round(0)!].flatMap(({ kv }) => kv);
    assert.deepEqual(
      given.map(({ blocks, last }) => [blocks.length, last]),
      [
        [4, false],
        [3, true],
      ],
    );
    assert.equal(given[1]!.blocks.at(-1)!.length, 4 * 512);
  });

  it("keeps a stalled sequence's slot and computes nothing for it", () => {
    const batch = createBatch(load());
    batch.add(add(1, tokensOf(5), { pace: { extraMsPerToken: 0, stallAfterTokens: 1 } }));
    assert.equal(batch.round(0)!.tokens.length, 1);
    assert.equal(batch.round(0), null);
    assert.deepEqual([batch.size, batch.wakeMs()], [1, Infinity]);
  });
});
