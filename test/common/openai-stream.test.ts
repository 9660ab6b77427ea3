import assert from "node:assert/strict";
import { createStreamReader, type StreamPart } from "../../services/common/openai-stream.ts";

function readIn(pieces: readonly string[]): (StreamPart | "done")[] {
  const seen: (StreamPart | "done")[] = [];
  const read = createStreamReader({ onPart: (part) => seen.push(part), onDone: () => seen.push("done") });
  for (const piece of pieces) read(piece);
  return seen;
}
const part = (more: Partial<StreamPart>): StreamPart => ({
  text: "",
  finishReason: undefined,
  usage: undefined,
  error: undefined,
  ...more,
});

const STREAM =
  ': keep-alive\n\ndata: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}\n\n' +
  'data: {"choices":[{"delta":{"content":"naïve"}}]}\r\n\r\ndata: {"choices":[{"text":" 😀","finish_reason":"length"}]}\n\n' +
  'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":3}}}\n\n' +
  "data: [DONE]\n\n";
const PARTS = [
  part({}),
  part({ text: "naïve" }),
  part({ text: " 😀", finishReason: "length" }),
  part({ usage: { promptTokens: 4, completionTokens: 2, cachedTokens: 3 } }),
  "done",
];

describe("an OpenAI stream", () => {
  it("is read event by event, of chats and completions, without its comments", () => {
    assert.deepEqual(readIn([STREAM]), PARTS);
  });

  it("is the same wherever the network cuts it", () => {
    for (let at = 1; at < STREAM.length; at++) assert.deepEqual(readIn([STREAM.slice(0, at), STREAM.slice(at)]), PARTS);
    assert.deepEqual(readIn([...STREAM]), PARTS);
  });

  it("reports its errors", () => {
    assert.deepEqual(readIn(['data: {"error":{"message":"gone"}}\n\ndata: {"error":{}}\n\n']), [
      part({ error: "gone" }),
      part({ error: "an error event" }),
    ]);
  });

  it("ends in a SyntaxError at an event that is not JSON", () => {
    assert.throws(() => readIn(["data: {nope\n\n"]), SyntaxError);
  });

  it("keeps an event back until it is whole", () => {
    assert.deepEqual(readIn(['data: {"choices":[{"text":"a"}]}\n']), []);
  });
});
