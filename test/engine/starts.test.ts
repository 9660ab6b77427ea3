// What a supervisor knows of the starts of its engine: how long the next one takes, and that there was one.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { attachedEngine } from "../../services/engine/attached.ts";
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
        http: { close() {}, get: () => new Promise(() => {}) },
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

describe("an attached engine", () => {
  it("is a new engine when another one took its place between two polls", async () => {
    const clock = manualClock();
    let metrics = "vllm:prompt_tokens_total 50\nvllm:generation_tokens_total 5\n";
    let polls = 0;
    const server = createServer((req, res) => {
      if (req.url === "/v1/models") return void res.end('{"data":[{"id":"fake","max_model_len":64}]}');
      if (req.url === "/metrics") polls += 1;
      res.end(req.url === "/metrics" ? metrics : req.url === "/version" ? '{"version":"1.2.3"}' : "{}");
    });
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const { port } = server.address() as AddressInfo;
    const url = `http://127.0.0.1:${port}`;
    const how = {
      apiKey: "",
      kind: undefined,
      model: "",
      servesUnpaired: true,
      kvAddress: "",
      startTimeoutMs: 300,
      restartCommand: "",
    };
    const supervisor = new EngineSupervisor({
      source: attachedEngine({ ...how, url, log: silentLog, clock }),
      log: silentLog,
      work: () => ({ legs: 1, promptTokens: 0 }),
      stallMs: 60_000,
      clock,
    });
    await supervisor.start(new AbortController().signal);
    const reasons: string[] = [];
    supervisor.onChange(() => reasons.push(supervisor.reason));
    const first = supervisor.live;
    const poll = async (): Promise<void> => {
      const sent = polls;
      await eventually("a poll", () => {
        clock.advance(500);
        return polls > sent;
      });
    };
    await poll();
    await eventually("it is read", () => supervisor.gauges.promptTokens === 50);
    assert.equal(supervisor.live, first);
    metrics = "vllm:prompt_tokens_total 10\nvllm:generation_tokens_total 9\n";
    await eventually("another one", () => {
      clock.advance(500);
      return supervisor.live !== undefined && supervisor.live !== first;
    });
    assert.ok(reasons.includes("the attached engine was replaced by another one"), reasons.join());
    assert.equal(supervisor.readyInMs, undefined);
    await supervisor.stop(0);
    server.closeAllConnections();
    server.close();
  });
});
