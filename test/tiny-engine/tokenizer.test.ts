import assert from "node:assert/strict";
import { tokenizer } from "../../services/tiny-engine/sim/tokenizer.ts";

describe("the sim's tokenizer", () => {
  it("loses nothing of any text", () => {
    for (const text of [
      "",
      " ",
      "Tell me a story about the sea.",
      "theory the then",
      "naïve 🌊\u0000\r\n\ttabs",
      "the".repeat(500),
      "<|eos|>",
      "日本語",
    ]) {
      assert.equal(tokenizer.decode(tokenizer.encode(text)), text);
    }
  });

  it("takes the longest word it knows", () => {
    assert.deepEqual(tokenizer.encode(" the sea"), [...tokenizer.encode(" the"), ...tokenizer.encode(" sea")]);
    assert.equal(tokenizer.encode(" the sea").length, 2);
    assert.equal(tokenizer.encode(" something").length, 1);
  });

  it("does not read special tokens out of text", () => {
    assert.ok(tokenizer.encode("<|im_end|>").every((token) => !tokenizer.isSpecial(token)));
  });

  it("gives no text for a piece of a character", () => {
    assert.ok(tokenizer.encode("я").every((token) => tokenizer.text(token) === null));
  });
});
