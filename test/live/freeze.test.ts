// On each Node that package.json allows: the channel and the pool live through what once froze a router's event loop.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { skip } from "../support/skip.ts";
import { node, NODE_VERSIONS } from "../support/tools.ts";
import { within } from "../support/waits.ts";

const SCRIPTS = [
  {
    what: "a channel that is closed inside an event of its session",
    file: "../rpc/close-in-event.mjs",
    says: "closed",
  },
  { what: "the channel of an instance that left with calls on it", file: "support/left-instance.mjs", says: "alive" },
];

for (const major of [20, 22, 24] as const) {
  describe(`on Node ${NODE_VERSIONS[major]}`, function () {
    this.timeout(120_000);
    let program: string;
    before(async function () {
      const found = await node(major);
      if ("missing" in found) skip(this, found.missing);
      program = found.path;
    });

    for (const { what, file, says } of SCRIPTS) {
      it(`${what} does not freeze the event loop`, async () => {
        // A frozen loop takes hundreds of megabytes a second, and can't be timed out from within.
        const command = 'ulimit -v 6000000; exec "$0" "$1"';
        const script = fileURLToPath(new URL(file, import.meta.url));
        const child = spawn("sh", ["-c", command, program, script], { stdio: ["ignore", "pipe", "inherit"] });
        const ended = Promise.all([text(child.stdout), once(child, "exit")]);
        const [output] = await within(ended, "the end of the process", 60_000).finally(() => child.kill("SIGKILL"));
        assert.equal(output, `${says}\n`);
      });
    }
  });
}
