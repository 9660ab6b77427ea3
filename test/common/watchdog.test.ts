import assert from "node:assert/strict";
import { endOfWatched } from "../support/watched-script.ts";

describe("a process with a watchdog", function () {
  // The limit is one of processor time, which a busy machine stretches.
  this.timeout(60_000);

  it("ends before it has grown by a gigabyte, though its loop is stuck and uses little processor time", async () => {
    const { ending, stderr } = await endOfWatched(`
      const ticks = new Int32Array(new SharedArrayBuffer(4));
      const kept = [];
      setTimeout(() => { for (;;) kept.push(Buffer.alloc(5e6, 1), Atomics.wait(ticks, 0, 0, 30)); }, 10);`);
    assert.equal(ending, "SIGABRT");
    assert.match(stderr, /its event loop is stuck for \d{4} ms, and its memory grew by \d{3} MiB/);
    assert.ok(Number(/memory (\d+) MiB/.exec(stderr)![1]) < 1024);
  });

  it("ends when its memory is above the limit, though its loop turns", async () => {
    const { ending, stderr } = await endOfWatched(
      "const kept = []; setInterval(() => kept.push(Buffer.alloc(5e6, 1)), 5);",
      300,
    );
    assert.equal(ending, "SIGABRT");
    assert.match(stderr, /its memory is above its limit of 300 MiB \(memory\.limit_mib\)/);
  });
});
