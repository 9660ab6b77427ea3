import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { within } from "../support/waits.ts";

describe("a channel that is closed inside an event of its own session", () => {
  it("closes, and does not send forever", async () => {
    const script = fileURLToPath(new URL("close-in-event.mjs", import.meta.url));
    // In a process of its own with a ceiling: an event loop that nghttp2 holds can't be timed out from within, and takes
    // hundreds of megabytes a second.
    const command = 'ulimit -v 3000000; exec "$0" "$1"';
    const child = spawn("sh", ["-c", command, process.execPath, script], { stdio: ["ignore", "pipe", "ignore"] });
    const [output] = await within(
      Promise.all([text(child.stdout), once(child, "exit")]),
      "the end of the process",
      15_000,
    );
    assert.equal(output, "closed\n");
  });

  it("is torn down in one place, and its streams are reset by CANCEL alone: only these are safe inside an event", () => {
    const found: string[] = [];
    for (const file of ["channel.ts", "connection.ts", "door.ts", "heartbeat.ts", "thin-call.ts"]) {
      const text = readFileSync(new URL(`../../services/rpc/${file}`, import.meta.url), "utf8");
      // The functions that may: outside of any event, and before there is a session.
      const rest = text.replaceAll(/^function (tearDown|closeLater|connectSocket)\b[\s\S]*?^}/gm, "");
      for (const line of rest.split("\n")) {
        const resets = /\.(destroy|destroySoon|rstStream)\(|[sS]tream\.close\((?!constants\.NGHTTP2_CANCEL\))/;
        if (resets.test(line) && !line.startsWith(" *")) found.push(`${file}: ${line.trim()}`);
      }
    }
    assert.deepEqual(found, []);
  });
});
