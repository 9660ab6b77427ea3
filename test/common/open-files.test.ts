import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { text } from "node:stream/consumers";
import { within } from "../support/waits.ts";

describe("a process without a free file descriptor", () => {
  it("says so, once a minute, and counts the time", async () => {
    const script = `
      import { openSync } from "node:fs";
      const { watchOpenFiles } = await import(${JSON.stringify(new URL("../../dist/services/common/open-files.js", import.meta.url).href)});
      let [logged, counted] = [0, 0];
      const log = { error: () => logged++ };
      const metrics = { counter: () => ({ inc(by) {
        counted += by;
        if (counted < 2) return;
        process.stdout.write(JSON.stringify([logged, counted]), () => process.exit());
      } }) };
      watchOpenFiles({ log, metrics });
      process.stdout.write("");
      setInterval(() => {}, 1_000);
      try { for (;;) openSync("/dev/null"); } catch {}`;
    // From dist/: tsx needs descriptors of its own.
    const command = 'ulimit -n 64; exec "$0" --input-type=module --eval "$1"';
    const child = spawn("sh", ["-c", command, process.execPath, script], { stdio: ["ignore", "pipe", "inherit"] });
    const output = within(text(child.stdout), "the end of the process").finally(() => child.kill("SIGKILL"));
    assert.equal(await output, "[1,2]");
  });
});
