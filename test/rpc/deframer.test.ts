import assert from "node:assert/strict";
import { ServiceError } from "../../services/common/errors.ts";
import { Deframer, frame } from "../../services/rpc/deframer.ts";

function deframe(chunks: readonly Buffer[], limitBytes = 1000): { messages: Buffer[]; unfinished: boolean } {
  const messages: Buffer[] = [];
  const deframer = new Deframer(limitBytes, (message) => messages.push(Buffer.from(message)));
  for (const chunk of chunks) deframer.push(chunk);
  return { messages, unfinished: deframer.unfinished };
}

describe("the deframer", () => {
  const messages = [Buffer.from("first"), Buffer.alloc(0), Buffer.alloc(300, 7), Buffer.alloc(0), Buffer.from("x")];
  const wire = Buffer.concat(messages.map(frame));

  it("finds the same messages wherever the stream is cut in two", () => {
    for (let cut = 0; cut <= wire.length; cut++) {
      const parts = [wire.subarray(0, cut), wire.subarray(cut)];
      assert.deepEqual(deframe(parts), { messages, unfinished: false }, `cut at ${cut}`);
    }
  });

  it("finds the same messages wherever a short stream is cut in three", () => {
    const short = [Buffer.from("ab"), Buffer.alloc(0), Buffer.from("cde")];
    const bytes = Buffer.concat(short.map(frame));
    for (let a = 0; a <= bytes.length; a++) {
      for (let b = a; b <= bytes.length; b++) {
        const parts = [bytes.subarray(0, a), bytes.subarray(a, b), bytes.subarray(b)];
        assert.deepEqual(deframe(parts), { messages: short, unfinished: false }, `cut at ${a} and ${b}`);
      }
    }
  });

  it("finds the same messages byte by byte", () => {
    assert.deepEqual(deframe([...wire].map((byte) => Buffer.of(byte))), { messages, unfinished: false });
  });

  it("says when the stream stops inside a head or a message", () => {
    const bytes = frame(Buffer.from("abc"));
    for (let cut = 1; cut < bytes.length; cut++)
      assert.equal(deframe([bytes.subarray(0, cut)]).unfinished, true, `cut at ${cut}`);
  });

  it("takes a message of exactly the limit, and names both sizes when it refuses a longer one", () => {
    assert.equal(deframe([frame(Buffer.alloc(1000))]).messages.length, 1);
    assert.throws(
      () => deframe([frame(Buffer.alloc(1001)).subarray(0, 5)]),
      (error) => {
        assert.ok(error instanceof ServiceError);
        assert.match(error.message, /1001 bytes.*1000/);
        return true;
      },
    );
  });

  it("refuses a compressed message", () => {
    const bytes = frame(Buffer.from("abc"));
    bytes[0] = 1;
    assert.throws(() => deframe([bytes]), /compressed/);
  });
});
