import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { within } from "../support/waits.ts";

const WATCHDOG = JSON.stringify(new URL("../../dist/services/common/watchdog.js", import.meta.url).href);

/** How the script ends under a watchdog. Runs dist/: from the source there is no thread. */
async function endOf(script: string, limitMib = 0) {
  const source = `import { startWatchdog } from ${WATCHDOG}; startWatchdog("router", ${limitMib}); ${script}`;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", source], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  const all = Promise.all([once(child, "exit"), text(child.stdout), text(child.stderr)]);
  const [[code, signal], stdout, stderr] = await within(all, "the end of the process", 50_000).finally(() => {
    child.kill("SIGKILL");
  });
  return { ending: (signal ?? code) as string | number, stdout, stderr };
}

describe("a process with a watchdog", function () {
  // The limit is one of processor time, which a busy machine stretches.
  this.timeout(60_000);

  it("ends with a report when its event loop is stuck, and says where", async () => {
    const { ending, stderr } = await endOf("setTimeout(function stuckHere() { for (;;) Math.random(); }, 10);");
    assert.equal(ending, "SIGABRT");
    assert.match(
      stderr,
      /The watchdog ends the router \(pid \d+\) with SIGABRT: its event loop is stuck for 3\d{3} ms/,
    );
    assert.match(stderr, /memory \d+ MiB, \d+ open files and sockets/);
    assert.match(stderr, /at stuckHere \(/);
  });

  it("ends before it has grown by a gigabyte, though its loop is stuck and uses little processor time", async () => {
    const { ending, stderr } = await endOf(`
      const ticks = new Int32Array(new SharedArrayBuffer(4));
      const kept = [];
      setTimeout(() => { for (;;) kept.push(Buffer.alloc(5e6, 1), Atomics.wait(ticks, 0, 0, 30)); }, 10);`);
    assert.equal(ending, "SIGABRT");
    assert.match(stderr, /its event loop is stuck for \d{4} ms, and its memory grew by \d{3} MiB/);
    assert.ok(Number(/memory (\d+) MiB/.exec(stderr)![1]) < 1024);
  });

  it("ends when its memory is above the limit, though its loop turns", async () => {
    const { ending, stderr } = await endOf(
      "const kept = []; setInterval(() => kept.push(Buffer.alloc(5e6, 1)), 5);",
      300,
    );
    assert.equal(ending, "SIGABRT");
    assert.match(stderr, /its memory is above its limit of 300 MiB \(memory\.limit_mib\)/);
  });

  it("goes on after two seconds of work in one turn, and ends when there is nothing left to do", async () => {
    const { ending, stdout } = await endOf(`
      const work = () => { const from = performance.now(); while (performance.now() - from < 2_000); };
      setTimeout(() => { work(); setTimeout(() => console.log("alive"), 600); }, 300);`);
    assert.deepEqual([ending, stdout], [0, "alive\n"]);
  });
});
