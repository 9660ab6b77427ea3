// What a supervisor knows of the starts of its engine: how long the next one takes, and that there was one.
import assert from "node:assert/strict";
import { Socket } from "node:net";
import type { EngineSource, StartedEngine } from "../../services/engine/engine.ts";
import type { EngineWork } from "../../services/engine/progress.ts";
import { EngineSupervisor } from "../../services/engine/supervisor.ts";
import { silentLog } from "../support/log-sink.ts";
import { manualClock } from "../support/manual-clock.ts";
import { deferred, eventually } from "../support/waits.ts";

describe("the time until an engine works", () => {
  it("is what its last start took, less what this one has taken, and a quarter more once that is over", async () => {
    const clock = manualClock();
    let loaded = deferred<StartedEngine>();
    let end: (why: Error) => void;
    const engine = (): StartedEngine =>
      ({
        http: { close() {}, get: () => new Promise(() => {}), connect: () => new Socket() },
        kvAddress: "",
        ended: new Promise<Error>((resolve) => (end = resolve)),
        stop: async () => {},
      }) as unknown as StartedEngine;
    const source: EngineSource = { ours: true, start: () => loaded.promise };
    const work = (): EngineWork => ({ legs: 0, promptTokens: 0 });
    const supervisor = new EngineSupervisor({ source, log: silentLog, work, stallMs: 60_000, clock });
    const starting = supervisor.start(new AbortController().signal);
    assert.equal(supervisor.readyInMs, 30_000, "a guess");
    await clock.pass(12_000);
    loaded.resolve(engine());
    await starting;
    assert.equal(supervisor.readyInMs, undefined);
    loaded = deferred();
    end!(new Error("the engine exited"));
    await eventually("it starts again", () => supervisor.readyInMs === 12_000);
    await clock.pass(5_000);
    assert.equal(supervisor.readyInMs, 7_000);
    await clock.pass(7_000);
    assert.equal(supervisor.readyInMs, 3_000);
    loaded.resolve(engine());
    await eventually("it works", () => supervisor.live);
    assert.equal(supervisor.readyInMs, undefined);
    await supervisor.stop(0);
  });
});
