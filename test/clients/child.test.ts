import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createChildLog, type ChildLog } from "../../clients/common/child-log.ts";
import { startChild, type Child, type Death } from "../../clients/common/child.ts";
import { deferred, eventually, within } from "../support/waits.ts";

interface Died extends Death {
  readonly unprinted: readonly string[];
}

/** A child that runs `script`, and its deaths in order. */
function run(
  script: string,
  log: ChildLog,
  again: (deaths: readonly Died[]) => boolean,
): { child: Child; deaths: Died[]; over: Promise<void> } {
  const deaths: Died[] = [];
  const over = deferred();
  const spec = { name: "prefill-1", role: "prefill", argv: ["-e", script], env: process.env } as const;
  const child = startChild(spec, log.read, (_, death) => {
    deaths.push({ ...death, unprinted: log.takeUnprinted() });
    const goOn = again(deaths);
    if (!goOn) over.resolve();
    return goOn;
  });
  return { child, deaths, over: over.promise };
}

describe("a child of `tandem up`", () => {
  let folder: string;
  let printed: string[];
  let output: ChildLog;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "tandem-child-"));
    printed = [];
    output = createChildLog({
      file: join(folder, "prefill-1.log"),
      limitBytes: 2_000,
      print: (line) => void printed.push(line),
    });
  });
  afterEach(async () => {
    await output.close();
    rmSync(folder, { recursive: true });
  });

  it("that ends by itself is restarted after a pause that doubles, and its last lines are kept", async () => {
    const { deaths, over, child } = run(
      `console.error('{"level":"info","msg":"out of luck ' + process.pid + '"}'); process.exit(7)`,
      output,
      (all) => all.length < 3,
    );
    await within(over, "three deaths");
    assert.deepEqual(
      deaths.map((died) => died.restartInMs),
      [200, 400, 800],
    );
    for (const { how, unprinted } of deaths) {
      assert.equal(how, "exit code 7");
      assert.equal(unprinted.length, 1, "each process's own words only");
      assert.match(unprinted[0]!, /^info out of luck \d+$/);
    }
    assert.equal(child.restarts, 2);
    assert.equal(child.pid, undefined);
  });

  it("that is killed reports the signal", async () => {
    const { deaths, over } = run(`process.kill(process.pid, "SIGKILL")`, output, () => false);
    await within(over, "the death");
    assert.equal(deaths[0]!.how, "SIGKILL");
  });

  it("that is stopped is not restarted, even if it is stopped in the pause before a restart", async () => {
    const paused = deferred();
    const { child, deaths } = run("process.exit(1)", output, () => {
      paused.resolve();
      return true;
    });
    await within(paused.promise, "the first death");
    await within(child.stop("SIGTERM"), "the stop");
    assert.equal(deaths.length, 1);
    assert.equal(child.pid, undefined);
  });

  it("that ignores a signal is ended by kill()", async () => {
    const { child } = run(
      `process.on("SIGTERM", () => console.error("never")); setInterval(() => {}, 1000); console.error("up")`,
      output,
      () => false,
    );
    await eventually("the child is up", () => printed.includes("up"));
    const stopped = child.stop("SIGTERM");
    await eventually("the child ignored the signal", () => printed.includes("never"));
    child.kill();
    await within(stopped, "the end");
  });

  it("has all output in its log file, and only warnings and plain errors on the terminal", async () => {
    const lines = [
      { level: "info", msg: "quiet" },
      { level: "warn", msg: "loud", left: 3 },
    ].map((line) => JSON.stringify(line));
    const { over } = run(
      `console.error(${JSON.stringify(lines.join("\n"))}); console.error("a crash"); console.log("an answer")`,
      output,
      () => false,
    );
    await within(over, "the end");
    await output.close();
    assert.deepEqual([...printed].sort(), ["a crash", "warn loud left=3"]);
    assert.deepEqual(
      readFileSync(join(folder, "prefill-1.log"), "utf8").trim().split("\n").sort(),
      [...lines, "a crash", "an answer"].sort(),
    );
  });

  it("keeps its logs within their limit, with the newest lines", async () => {
    const { over } = run(
      `console.log(Array.from({ length: 500 }, (_, n) => "line " + (n + 1)).join("\\n"))`,
      output,
      () => false,
    );
    await within(over, "the end");
    await output.close();
    const logs = ["prefill-1.log.1", "prefill-1.log"].map((name) => readFileSync(join(folder, name), "utf8"));
    assert.ok(logs.join("").length <= 2_000, `${logs.join("").length} bytes`);
    assert.match(logs.join(""), /line 499\nline 500\n$/);
  });
});
