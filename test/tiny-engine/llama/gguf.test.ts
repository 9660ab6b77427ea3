import assert from "node:assert/strict";
import { readGguf } from "../../../services/tiny-engine/llama/gguf.ts";
import { createModel } from "../../../services/tiny-engine/llama/model.ts";
import { randomGguf, SMALL, writeGguf, type RandomModel } from "../../../clients/common/random-gguf.ts";

const TINY: RandomModel = { ...SMALL, layers: 1, vocab: 64, maxContext: 64 };
const load = (file: Uint8Array): unknown => createModel(readGguf(file), { kvBytes: 1 << 20 });

describe("a GGUF file", () => {
  it("is read", () => {
    const gguf = readGguf(randomGguf(TINY));
    assert.equal(gguf.metadata.get("general.architecture"), "llama");
    assert.deepEqual(gguf.tensors.get("blk.0.attn_k.weight")!.dimensions, [128, 64]);
  });

  it("that is cut off anywhere is refused, never half read", () => {
    const file = randomGguf(TINY);
    for (let length = 0; length < file.length; length += 997) {
      assert.throws(() => load(file.subarray(0, length)), { name: "GgufError" }, `${length} bytes`);
    }
  });

  it("with impossible counts is refused before memory is allocated for them", () => {
    const file = randomGguf(TINY);
    for (const [at, what] of [
      [8, "tensors"],
      [16, "metadata"],
    ] as const) {
      const hostile = Buffer.from(file);
      hostile.writeBigUInt64LE(1n << 62n, at);
      assert.throws(() => readGguf(hostile), { name: "GgufError" }, what);
    }
  });

  for (const [name, overrides, message] of [
    ["of another architecture", { "general.architecture": "qwen2" }, /"qwen2".*"llama"/],
    ["without its context length", { "llama.context_length": undefined }, /llama.context_length/],
    ["with scaled rotary positions", { "llama.rope.scaling.type": "yarn" }, /scales/],
    ["of another width than its tensors", { "llama.feed_forward_length": 256 }, /blk\.0\.ffn/],
  ] as const) {
    it(`${name} is refused with the reason`, () => {
      assert.throws(() => load(randomGguf(TINY, overrides)), { name: "GgufError", message });
    });
  }

  it("in a quantisation that this engine doesn't compute is refused by its name", () => {
    const file = writeGguf({ "general.architecture": "llama" }, [
      { name: "x", dimensions: [32], type: "Q4_K", bytes: Buffer.alloc(32) },
    ]);
    assert.throws(() => readGguf(file), { name: "GgufError", message: /Q4_K.*Q8_0/ });
  });
});
