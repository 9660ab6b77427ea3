import assert from "node:assert/strict";
import type { StreamResult } from "../../../clients/loadgen/stream-request.ts";
import { compareAnswers } from "../../../clients/loadgen/verify.ts";

type Answer = Pick<StreamResult, "completed" | "text" | "tokens" | "error">;

const answer = (text: string, completed = true): Answer => ({
  completed,
  text,
  tokens: text.split(" ").length,
  error: completed ? undefined : "broken",
});

describe("answers compared with the reference", () => {
  it("are right when each is the same text with the same count", () => {
    const { compared, short, different } = compareAnswers(
      [answer("a b c"), answer("d")],
      [answer("a b c"), answer("d")],
    );
    assert.deepEqual({ compared, short, different }, { compared: 2, short: 0, different: 0 });
  });

  it("are short if their end is missing, and different if they differ before it", () => {
    const { short, different, example } = compareAnswers(
      [answer("a b", false), answer("a c b"), answer("a a b")],
      [answer("a b c"), answer("a b c"), answer("a b")],
    );
    assert.deepEqual({ short, different }, { short: 1, different: 2 });
    assert.equal(example, "request 0: broken");
  });

  it("without a reference are not counted", () => {
    assert.equal(compareAnswers([answer("a")], [answer("a", false)]).compared, 0);
  });
});
