// A large fleet on Consul: what it costs a router that only watches. TANDEM_TEST_FLEET says how many instances.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { startConsul } from "../support/consul.ts";
import { startRouterProcess } from "../support/processes.ts";
import { skip } from "../support/skip.ts";
import { consul } from "../support/tools.ts";

const COUNT = Number(process.env["TANDEM_TEST_FLEET"] ?? 200);
const SETTLE_MS = 5_000;
const LOOK_MS = 15_000;
const FLEET = fileURLToPath(new URL("./support/fleet.ts", import.meta.url));

/** Seconds of processor time, user and system. */
function cpuS(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /, "")
    .split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

function rssMb(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) / 1024;
}

describe(`a router that watches ${COUNT} instances in Consul`, function () {
  this.timeout(300_000);

  it("stays small, and idle while nothing happens", async function () {
    const found = await consul();
    if ("missing" in found) skip(this, found.missing);
    if (process.platform !== "linux") skip(this, "reads /proc");
    await using agent = await startConsul();
    await using router = await startRouterProcess(["--registry.kind", "consul", "--consul.address", agent.address]);
    const emptyMb = rssMb(router.pid);
    const fleet = spawn(process.execPath, ["--import=tsx", FLEET, String(COUNT), agent.address], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    try {
      const readyMs = performance.now();
      // Asked now and then: what is measured is a router that nobody asks.
      for (;;) {
        const text = await (await fetch(`${router.url}/metrics`)).text();
        const serving = [...text.matchAll(/^tandem_pool_instances\{role="\w+",state="serving"\} (\d+)$/gm)].reduce(
          (sum, [, count]) => sum + Number(count),
          0,
        );
        if (serving === COUNT) break;
        if (fleet.exitCode !== null || performance.now() - readyMs > 240_000)
          throw new Error(`${serving} of ${COUNT} instances get legs`);
        await sleep(1_000);
      }
      const startedS = (performance.now() - readyMs) / 1000;
      await sleep(SETTLE_MS);
      const [cpuBefore, sinceMs] = [cpuS(router.pid), performance.now()];
      await sleep(LOOK_MS);
      const share = (cpuS(router.pid) - cpuBefore) / ((performance.now() - sinceMs) / 1000);
      const mb = rssMb(router.pid);
      console.log(
        `      ${COUNT} instances after ${startedS.toFixed(1)} s; router: ${mb.toFixed(0)} MB resident (${emptyMb.toFixed(0)} MB before them), ` +
          `${(share * 100).toFixed(1)} % of a core while idle`,
      );
      // 195 MB seen, of which 30 live: V8 lets the garbage of heartbeats grow to a multiple of that.
      assert.ok(mb < 250, `${mb} MB`);
      // The promise is 5 %; a machine under load counts more for the same work.
      assert.ok(share < 0.25, `${share * 100} %`);
    } finally {
      const gone = once(fleet, "exit");
      fleet.kill("SIGKILL");
      await gone;
    }
  });
});
