// A router that is stopped for some seconds, as by a machine that is moved or swaps: its instances wait for it, and it
// holds the pause against none of them.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { skip } from "../support/skip.ts";
import { steadyLoad } from "../support/steady-load.ts";
import { startTandem } from "../support/tandem.ts";
import { eventually } from "../support/waits.ts";
import { commandOf, familyOf } from "./support/processes.ts";

const PAUSES_MS = [3_000, 6_000, 9_000];

describe("a router that is stopped for seconds", function () {
  this.timeout(120_000);

  it("loses no stream and no instance, and refuses nothing", async function () {
    if (process.platform !== "linux") skip(this, "its process is found in /proc");
    // 4 s an answer, of a temperature that no other instance could repeat.
    await using tandem = await startTandem([
      "--prefill",
      "2",
      "--decode",
      "2",
      "--engine.flag=--sim.decode_ms_per_token=20",
    ]);
    const router = familyOf(tandem.pid).find((pid) => / router( |$)/.test(commandOf(pid)))!;
    const load = steadyLoad([tandem.url], { clients: 24, tokens: 200 });
    for (const pauseMs of PAUSES_MS) {
      const answered = load.sent.length;
      await eventually("answers", () => load.sent.length >= answered + 12, 60_000);
      process.kill(router, "SIGSTOP");
      await sleep(pauseMs);
      process.kill(router, "SIGCONT");
    }
    await load.stop();
    assert.deepEqual(load.failed, []);
    console.log(`    ${load.sent.length} streams, none failed`);
    assert.doesNotMatch(tandem.output(), /instance is out|instance left/);
  });
});
