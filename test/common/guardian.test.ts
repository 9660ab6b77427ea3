import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { spawnGuarded } from "../../services/common/guardian.ts";
import { identityOf } from "../../services/common/process-identity.ts";
import { eventually, within } from "../support/waits.ts";

const guarded = (script: string) => spawnGuarded({ command: "/bin/sh", args: ["-c", script] });
const isGone = (pid: number): boolean => identityOf(pid) === undefined;

describe("a guarded engine", () => {
  it("reports its exit code, the signal that ended it, and its output", async () => {
    const failing = await guarded("echo out; echo err >&2; exit 3");
    assert.deepEqual(await within(failing.exited, "exit"), { code: 3 });
    await eventually("its words", () => failing.lastLines().length === 2);
    assert.deepEqual([...failing.lastLines()].sort(), ["err", "out"]);
    const killed = await guarded("exec sleep 60");
    process.kill(killed.pid, "SIGKILL");
    assert.deepEqual(await within(killed.exited, "exit"), { signal: 9 });
  });

  it("takes its children with it when it exits by itself", async () => {
    const engine = await guarded("sleep 60 & echo $!; wait $!");
    const child = Number(await eventually("the child's id", () => engine.lastLines()[0]));
    process.kill(engine.pid, "SIGKILL");
    await within(engine.exited, "exit");
    await eventually("the child is gone", () => isGone(child));
  });

  it("is asked to stop, then killed, with all its children", async () => {
    const polite = await guarded("exec sleep 60");
    await within(polite.stop(5_000), "the polite one's stop");
    assert.deepEqual(await polite.exited, { signal: 15 });
    const stubborn = await guarded("trap '' TERM; sleep 60 & echo $!; wait; sleep 60");
    const child = Number(await eventually("the child's id", () => stubborn.lastLines()[0]));
    await within(stubborn.stop(50), "the stubborn one's stop");
    await eventually("all are gone", () => isGone(stubborn.pid) && isGone(child));
    await stubborn.stop(50);
  });

  it("does not survive its guardian", async () => {
    const engine = await guarded("exec sleep 60");
    process.kill(engine.group, "SIGKILL");
    await within(engine.exited, "exit");
    await eventually("the engine is gone", () => isGone(engine.pid));
  });

  it("does not survive its wrapper, killed with SIGKILL", async () => {
    const module = new URL("../../services/common/guardian.ts", import.meta.url).href;
    const wrapper = spawn(
      process.execPath,
      [
        "--import=tsx",
        "--input-type=module",
        "-e",
        `const { spawnGuarded } = await import(${JSON.stringify(module)});
         const engine = await spawnGuarded({ command: "/bin/sh", args: ["-c", "sleep 60 & echo child $!; wait"] });
         while (engine.lastLines().length === 0) await new Promise((r) => setTimeout(r, 10));
         console.log(engine.pid, engine.group, engine.lastLines()[0].split(" ")[1]);`,
      ],
      { stdio: ["ignore", "pipe", "inherit"] },
    );
    const [line] = await within(once(wrapper.stdout, "data") as Promise<[Buffer]>, "the wrapper's engine", 10_000);
    const pids = line.toString().trim().split(" ").map(Number);
    for (const pid of pids) assert.equal(await isGone(pid), false);
    wrapper.kill("SIGKILL");
    await eventually("engine, guardian and child are gone", async () =>
      (await Promise.all(pids.map(isGone))).every(Boolean),
    );
  });

  it("is refused when its command doesn't exist, with the shell's words", async () => {
    const engine = await spawnGuarded({ command: "/nowhere/vllm", args: [] });
    assert.deepEqual(await within(engine.exited, "exit"), { code: 127 });
    await eventually("its words", () => engine.lastLines().some((line) => /nowhere/.test(line)));
  });
});
