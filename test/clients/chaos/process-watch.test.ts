import assert from "node:assert/strict";
import { checkProcesses, processWatch } from "../../../clients/chaos/process-watch.ts";

describe("the processes of a chaos run", () => {
  it("may not take a gigabyte, and a router may not be silent", () => {
    const big = { peakBytes: 1.5 * 2 ** 30, longestSilenceMs: 0 };
    const quiet = { peakBytes: 0, longestSilenceMs: 9_000 };
    const violations = checkProcesses(
      new Map([
        ["router-1", big],
        ["router-2", quiet],
        ["decode-1", { ...big, peakBytes: 1 }],
      ]),
    );
    assert.deepEqual(
      violations.map(({ rule, what }) => [rule, what]),
      [
        ["memory", "router-1 took 1536 MiB of memory"],
        ["loop", "router-2 answered nothing for 9000 ms"],
      ],
    );
  });

  it("are silent only while the same one runs on, and their memory is read", () => {
    const watch = processWatch();
    watch.sawAnswer("router-1", 7, false, 0);
    watch.sawAnswer("router-1", 7, false, 3_000);
    watch.sawAnswer("router-1", 8, false, 20_000);
    watch.sawAnswer("router-1", 8, true, 21_000);
    watch.sawAnswer("router-1", 8, false, 40_000);
    assert.equal(watch.figures.get("router-1")?.longestSilenceMs, 3_000);
    watch.sawMemory({ name: "self", pid: process.pid });
    if (process.platform === "linux") assert.ok(watch.figures.get("self")!.peakBytes > 10 * 2 ** 20);
  });
});
