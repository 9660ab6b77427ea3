import assert from "node:assert/strict";
import { EventSplitter } from "../../services/engine/sse.ts";

function split(text: string, cut: number, limit = 1_000): { events: string[]; pending: number } {
  const events: string[] = [];
  const splitter = new EventSplitter((buffer, start, end) => events.push(buffer.toString("utf8", start, end)), limit);
  const bytes = Buffer.from(text);
  for (let at = 0; at < bytes.length; at += cut) splitter.push(bytes.subarray(at, at + cut));
  return { events, pending: splitter.pendingBytes };
}

describe("an event stream", () => {
  const text = 'data: {"a":"é"}\n\n: keep-alive\n\ndata: 1\ndata: 2\n\ndata: x\r\n\r\n\n\n\r\ndata: [DONE]\n\n';
  const events = ['data: {"a":"é"}', ": keep-alive", "data: 1\ndata: 2", "data: x", "data: [DONE]"];

  it("gives the same events wherever it is cut", () => {
    for (let cut = 1; cut <= text.length + 1; cut++)
      assert.deepEqual(split(text, cut), { events, pending: 0 }, `cut every ${cut} bytes`);
  });

  it("shows that it was cut off inside an event", () => {
    assert.deepEqual(split("data: a\n\ndata: b\n", 4), { events: ["data: a"], pending: 8 });
  });

  it("keeps several line endings of an event apart from its end", () => {
    assert.deepEqual(split("a\nb\r\nc\n\nd\n\n", 1).events, ["a\nb\r\nc", "d"]);
  });

  it("refuses an event that grows past the limit, in chunks of any size", () => {
    for (const cut of [1, 7, 5_000]) assert.throws(() => split(`data: ${"x".repeat(2_000)}`, cut), RangeError);
  });
});
