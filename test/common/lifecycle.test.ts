import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { anySignal, background, backoffMs, onceAborted, startLife } from "../../services/common/lifecycle.ts";
import { moduleUrl, runScript } from "../support/script.ts";

const lifecycle = JSON.stringify(moduleUrl("services/common/lifecycle.ts"));

describe("a process that waits for a signal", () => {
  const waiting = `
    import { untilSignal, onceAborted } from ${lifecycle};
    const stop = untilSignal("SIGINT", "SIGTERM");
    setInterval(() => {}, 1000);
    console.log("ready");
    await onceAborted(stop);
    console.log("stopping after " + stop.reason);`;

  it("stops by itself at the first one and at once at the second", async () => {
    await using script = runScript(waiting);
    await script.printed("ready");
    script.process.kill("SIGTERM");
    await script.printed("stopping after SIGTERM");
    await sleep(550); // Time is the subject: an earlier signal would count as the same one.
    script.process.kill("SIGINT");
    assert.equal((await script.ended).code, 130);
  });

  it("takes Ctrl-C as one signal although npm passes on a second copy", async () => {
    await using script = runScript(`${waiting}
      setTimeout(() => process.exit(7), 300);`);
    await script.printed("ready");
    script.process.kill("SIGINT");
    await script.printed("stopping after SIGINT");
    script.process.kill("SIGINT");
    assert.equal((await script.ended).code, 7);
  });
});

describe("a process that stops", () => {
  it("exits two seconds after its grace, and says what it waited for", async () => {
    const began = performance.now();
    await using script = runScript(`
      import { mustEndWithin, stage } from ${lifecycle};
      mustEndWithin(0, (found) => console.log(JSON.stringify(found)));
      setInterval(() => {}, 60_000);
      await stage("the end of time", new Promise(() => {}));`);
    const { code, stdout } = await script.ended;
    assert.equal(code, 1);
    const found = JSON.parse(stdout) as { waitsFor: string[]; open: Record<string, number> };
    assert.deepEqual([found.waitsFor, found.open["Timeout"]], [["the end of time"], 1]);
    assert.ok(performance.now() - began >= 2_000);
  });

  it("isn't kept alive by that", async () => {
    await using script = runScript(`
      import { mustEndWithin } from ${lifecycle};
      mustEndWithin(60_000, () => {});`);
    assert.equal((await script.ended).code, 0);
  });
});

describe("a process whose parent died", () => {
  const orphan = `
    import { stopWithParent, onceAborted } from ${lifecycle};
    const gone = stopWithParent();
    console.log("ready " + (gone === undefined));
    setInterval(() => {}, 1000);
    if (gone) { await onceAborted(gone); console.log("alone"); }`;

  it("is told by the end of its standard input, and exits hard two seconds later", async () => {
    await using script = runScript(orphan, { stdin: "pipe", env: { TANDEM_PARENT_PIPE: "1" } });
    await script.printed("ready false");
    script.process.stdin!.end();
    await script.printed("alone");
    const sinceMs = performance.now();
    assert.equal((await script.ended).code, 1);
    assert.ok(performance.now() - sinceMs > 1_500);
  });

  it("leaves standard input alone unless the parent gave it a meaning", async () => {
    await using script = runScript(orphan, { stdin: "ignore", env: { TANDEM_PARENT_PIPE: "" } });
    await script.printed("ready true");
  });

  it("isn't kept alive by watching", async () => {
    await using script = runScript(`import { stopWithParent } from ${lifecycle}; stopWithParent();`, {
      stdin: "pipe",
      env: { TANDEM_PARENT_PIPE: "1" },
    });
    assert.equal((await script.ended).code, 0);
  });
});

describe("abort signals", () => {
  it("combine, undefined ones left out", async () => {
    const controller = new AbortController();
    const any = anySignal(undefined, controller.signal);
    assert.equal(any.aborted, false);
    const aborted = onceAborted(any);
    controller.abort("why");
    await aborted;
    assert.equal(any.reason, "why");
    await onceAborted(any);
    assert.equal(anySignal().aborted, false);
  });
});

describe("back-off", () => {
  it("doubles from its minimum to its maximum, half of it at random", () => {
    const bounds = { minMs: 50, maxMs: 2_000 };
    const longest = Array.from({ length: 8 }, (_, attempt) => Math.round(backoffMs(attempt, bounds, () => 1 - 1e-9)));
    assert.deepEqual(longest, [50, 100, 200, 400, 800, 1_600, 2_000, 2_000]);
    assert.equal(
      backoffMs(0, bounds, () => 0),
      50,
    );
    assert.equal(
      backoffMs(3, bounds, () => 0),
      200,
    );
    assert.equal(
      backoffMs(5_000, bounds, () => 0),
      1_000,
    );
  });
});

describe("work in the background", () => {
  it("is told to stop when it is disposed of, and is waited for", async () => {
    const steps: string[] = [];
    const work = background(async (stop) => {
      await onceAborted(stop);
      steps.push("stopped");
    });
    steps.push("disposed");
    await work[Symbol.asyncDispose]();
    assert.deepEqual(steps, ["disposed", "stopped"]);
  });
});

describe("a service whose life is one function", () => {
  function life(o: { failing?: boolean } = {}) {
    const order: string[] = [];
    const part = (name: string): AsyncDisposable => ({ [Symbol.asyncDispose]: async () => void order.push(name) });
    return {
      order,
      run: async (running: (address: string) => Promise<number>): Promise<void> => {
        await using _first = part("first");
        await using _second = part("second");
        if (o.failing === true) throw new Error("the port is taken");
        await using _third = part("third");
        order.push(`drained for ${await running("a:1")} ms`);
      },
    };
  }

  it("drains when it is stopped, and ends its parts in reverse order", async () => {
    const { order, run } = life();
    const { parts, stop } = await startLife(run);
    assert.equal(parts, "a:1");
    assert.deepEqual(order, []);
    const [first, second] = [stop(5), stop(0)];
    assert.equal(second, first, "later calls wait for the first");
    await first;
    assert.deepEqual(order, ["drained for 5 ms", "third", "second", "first"]);
  });

  it("ends what has started when the start fails, in the same order", async () => {
    const { order, run } = life({ failing: true });
    await assert.rejects(startLife(run), /the port is taken/);
    assert.deepEqual(order, ["second", "first"]);
  });
});
