// Processes whose event loop is busy for seconds: test/common/watchdog.test.ts has what is quick.
import assert from "node:assert/strict";
import { endOfWatched } from "../support/watched-script.ts";

describe("a process with a watchdog", function () {
  // The limit is one of processor time, which a busy machine stretches.
  this.timeout(60_000);

  it("ends with a report when its event loop is stuck, and says where", async () => {
    const { ending, stderr } = await endOfWatched("setTimeout(function stuckHere() { for (;;) Math.random(); }, 10);");
    assert.equal(ending, "SIGABRT");
    assert.match(
      stderr,
      /The watchdog ends the router \(pid \d+\) with SIGABRT: its event loop is stuck for 3\d{3} ms/,
    );
    assert.match(stderr, /memory \d+ MiB, \d+ open files and sockets/);
    assert.match(stderr, /at stuckHere \(/);
  });

  it("goes on after two seconds of work in one turn, and ends when there is nothing left to do", async () => {
    const { ending, stdout } = await endOfWatched(`
      const work = () => { const from = performance.now(); while (performance.now() - from < 2_000); };
      setTimeout(() => { work(); setTimeout(() => console.log("alive"), 600); }, 300);`);
    assert.deepEqual([ending, stdout], [0, "alive\n"]);
  });
});
