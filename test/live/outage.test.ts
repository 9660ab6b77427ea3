// How long a deployment as shipped is out, for those whom a fault does not concern: a body that makes engines fail, with
// engines that take long to load, and half of the decode instances killed at once. Prints the times.
import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { engineUnder } from "../../clients/chaos/engine.ts";
import { routerClient } from "../../clients/client/rpc.ts";
import { POISON } from "../../services/tiny-engine/faults.ts";
import { skip } from "../support/skip.ts";
import { steadyLoad, type SteadyLoad } from "../support/steady-load.ts";
import { startTandem, type Tandem } from "../support/tandem.ts";
import { eventually } from "../support/waits.ts";

const STAND_IN = fileURLToPath(new URL("../../dist/services/tiny-engine/stand-in.js", import.meta.url));
const LOAD_S = 15;
const OUTAGE_MS = 1_000;
/** With more processes than this waiting for each core, times say nothing. */
const BUSY_LOAD = 2;

describe("a deployment as shipped, under load", function () {
  this.timeout(240_000);
  let folder: string;
  before(function () {
    if (process.platform !== "linux") skip(this, "finds engines in /proc");
    folder = mkdtempSync(join(tmpdir(), "tandem-outage-"));
  });
  after(() => folder !== undefined && rmSync(folder, { recursive: true, force: true }));

  it(`serves everybody else beside a body that makes engines fail, 2P3D, engines that load for ${LOAD_S} s`, async () => {
    const vllm = join(folder, "vllm");
    const wait = `[ "$1" = --version ] || sleep ${LOAD_S}`;
    writeFileSync(vllm, `#!/bin/sh\n${wait}\nexec "${process.execPath}" "${STAND_IN}" "$@"\n`);
    chmodSync(vllm, 0o755);
    const flags = ["--prefill", "2", "--decode", "3", "--engine", "vllm", "--connector", "p2p-nccl", "--model", "m"];
    await using tandem = await startTandem([...flags, "--vllm.command", vllm], {
      XDG_STATE_HOME: folder,
      TMPDIR: folder,
    });
    const before = await enginesOf(tandem);
    assert.equal(before.length, 5);
    const load = steadyLoad([tandem.url], { clients: 12, tokens: 40, model: "m" });
    await eventually("all are served", () => load.sent.length >= 24);
    const fromMs = Date.now();
    const answers: number[] = [];
    for (let count = 0; count < 12; count++) {
      const response = await fetch(`${tandem.url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ model: "m", prompt: POISON, max_tokens: 4 }),
      });
      answers.push(response.status);
      await response.text();
    }
    const served = load.sent.length;
    await eventually("all are served on", () => load.sent.length >= served + 48);
    const untilMs = Date.now();
    await load.stop();
    const gapMs = longestGapMs(load, fromMs, untilMs);
    const text = `${load.sent.length} others, ${load.failed.length} failed, at most ${gapMs} ms without an answer; the poison: ${answers.join(" ")}`;
    console.log(`    ${text}`);
    assert.deepEqual(load.failed, []);
    assert.ok(
      answers.every((status) => status >= 500),
      text,
    );
    assert.deepEqual(await enginesOf(tandem), before, "no engine was restarted");
    if (isQuiet()) assert.ok(gapMs < OUTAGE_MS, text);
  });

  it("serves within a second on the rest, when half of the decode instances are killed at once", async () => {
    await using tandem = await startTandem(["--prefill", "2", "--decode", "4"]);
    const { instances } = await routerClient(tandem.url, tandem.token).listInstances({});
    const decodes = instances.filter(({ info }) => info!.role === 2).map(({ info }) => info!);
    const load = steadyLoad([tandem.url], { clients: 16, tokens: 100 });
    await eventually("all are served", () => load.sent.length >= 32);
    const killed = decodes.slice(0, 2).flatMap((info) => [info.pid, engineUnder(info)()!.pid]);
    for (const pid of killed) process.kill(pid, "SIGKILL");
    const killedMs = Date.now();
    const after = (): number => load.sent.filter(({ startedMs }) => startedMs > killedMs).length;
    await eventually("requests that came later are served", () => after() >= 16);
    const untilMs = Date.now();
    await load.stop();
    const gapMs = longestGapMs(load, killedMs, untilMs);
    const text = `${load.sent.length} requests, ${load.failed.length} failed, at most ${gapMs} ms without an answer`;
    console.log(`    ${text}`);
    // A stream that ran there may break: its temperature is not 0, so that nothing writes it again.
    assert.deepEqual(
      load.failed.filter(({ startedMs }) => startedMs > killedMs),
      [],
    );
    if (isQuiet()) assert.ok(gapMs < OUTAGE_MS, text);
  });
});

/** Processes of the engines, in the order of their ids. */
async function enginesOf({ url, token }: Tandem): Promise<number[]> {
  const { instances } = await routerClient(url, token).listInstances({});
  return instances.map(({ info }) => engineUnder(info!)()!.pid).sort((a, b) => a - b);
}

/** The longest time in which no request was answered. */
function longestGapMs({ sent }: SteadyLoad, fromMs: number, untilMs: number): number {
  const ends = sent.filter(({ error }) => error === undefined).map(({ endedMs }) => endedMs);
  const times = [fromMs, ...ends.filter((at) => at > fromMs && at < untilMs).sort((a, b) => a - b), untilMs];
  return Math.max(...times.slice(1).map((at, index) => at - times[index]!));
}

function isQuiet(): boolean {
  return loadavg()[0]! / availableParallelism() < BUSY_LOAD;
}
