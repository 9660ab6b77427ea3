import assert from "node:assert/strict";
import { editDistance, nearest } from "../../services/common/nearest.ts";

describe("the nearest name", () => {
  it("counts insertions, deletions, replacements and swaps", () => {
    for (const [a, b, distance] of [
      ["", "", 0],
      ["abc", "abc", 0],
      ["abc", "", 3],
      ["abc", "abxc", 1],
      ["prot", "port", 1],
      ["kitten", "sitting", 3],
    ] as const) {
      assert.equal(editDistance(a, b), distance, `${a} -> ${b}`);
      assert.equal(editDistance(b, a), distance, `${b} -> ${a}`);
    }
  });

  it("is not offered if no candidate is near", () => {
    assert.equal(nearest("zzzzzz", ["port", "model"]), undefined);
    assert.equal(nearest("modle", ["port", "model"]), "model");
  });
});
