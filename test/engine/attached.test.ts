import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock } from "../../services/common/clock.ts";
import { attachedEngine } from "../../services/engine/attached.ts";
import { EngineSupervisor, type SupervisorOptions } from "../../services/engine/supervisor.ts";
import { startSimEngine } from "../../services/tiny-engine/server.ts";
import { logSink, silentLog } from "../support/log-sink.ts";
import { manualClock } from "../support/manual-clock.ts";
import { skip } from "../support/skip.ts";
import { deferred, eventually, untilQuiet, within } from "../support/waits.ts";

describe("an engine that Tandem is attached to", () => {
  async function attached(
    url: string,
    model = "",
    o = { servesUnpaired: true, stallMs: 60_000 },
    clock = systemClock,
    more: Partial<SupervisorOptions> & { readonly restartCommand?: string } = {},
  ): Promise<EngineSupervisor> {
    const supervisor = new EngineSupervisor({
      source: attachedEngine({
        url,
        apiKey: "",
        kind: undefined,
        model,
        servesUnpaired: o.servesUnpaired,
        kvAddress: "",
        restartCommand: more.restartCommand ?? "",
        startTimeoutMs: 300,
        log: more.log ?? silentLog,
        clock,
      }),
      log: more.log ?? silentLog,
      work: () => ({ legs: 1, promptTokens: 0 }),
      stallMs: o.stallMs,
      clock,
      ...more,
    });
    await supervisor.start(new AbortController().signal);
    return supervisor;
  }

  it("must complete a token before it counts as working", async () => {
    await using engine = await startSimEngine({});
    const supervisor = await attached(engine.url);
    assert.equal(engine.state().outcomes.finished, 1);
    assert.deepEqual([supervisor.live!.facts.kind, supervisor.live!.facts.model], ["sim", "tandem-sim"]);
    await supervisor.stop(0);
    await using broken = await startSimEngine({ faults: ["refuse"] });
    await assert.rejects(attached(broken.url), /POST \/v1\/completions answers 503/);
  });

  it("is not taken for lost while it is only too busy to be polled", async () => {
    const clock = manualClock();
    let polls = 0;
    let answers = Infinity;
    const server = createServer((req, res) => {
      if (req.url === "/v1/models") return void res.end('{"data":[{"id":"fake","max_model_len":64}]}');
      if (req.url === "/metrics" && ++polls > answers) return;
      res.end(req.url === "/version" ? '{"version":"1.2.3"}' : "{}");
    });
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const supervisor = await attached(
      `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      "",
      undefined,
      clock,
    );
    const first = supervisor.live;
    answers = polls;
    await eventually("two polls went unanswered, and a third was sent", () => {
      clock.advance(500);
      return polls >= answers + 3;
    });
    assert.equal(supervisor.live, first);
    await supervisor.stop(0);
    server.closeAllConnections();
    server.close();
  });

  it("is out when it goes, and used again when it is back", async () => {
    const engine = await startSimEngine({});
    const supervisor = await attached(engine.url);
    const live = supervisor.live!;
    engine.kill();
    supervisor.suspect(live);
    await eventually("it is missed", () => supervisor.live === undefined);
    assert.match(supervisor.reason, /port/);
    await using again = await startSimEngine({ port: Number(new URL(engine.url).port) });
    await eventually("it is back", () => supervisor.live);
    assert.equal(supervisor.live!.http.origin, again.url);
    const back = supervisor.live!;
    supervisor.restart(back, "x");
    assert.deepEqual([supervisor.canRestart, supervisor.live, supervisor.reason], [false, back, ""]);
    await supervisor.stop(0);
  });

  it("is out as soon as it dies, before any poll", async () => {
    const engine = await startSimEngine({});
    // Nothing is polled on a clock that stands still.
    const supervisor = await attached(engine.url, "", undefined, manualClock());
    const { promise: changed, resolve } = deferred();
    supervisor.onChange(resolve);
    engine.kill();
    await within(changed, "the news");
    assert.equal(supervisor.live, undefined);
    assert.match(supervisor.reason, /port/);
    await supervisor.stop(0);
  });

  it("is another one when another process answers at its address, also between two polls", async () => {
    let startedS = 1;
    const server = createServer((req, res) => {
      if (req.url === "/v1/models") return void res.end('{"data":[{"id":"fake"}]}');
      res.end(req.url === "/metrics" ? `process_start_time_seconds ${startedS}\n` : "{}");
    });
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const clock = manualClock();
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const supervisor = await attached(url, "", undefined, clock);
    const first = supervisor.live;
    const reasons: string[] = [];
    supervisor.onChange(() => reasons.push(supervisor.reason));
    await eventually("it is polled", () => {
      clock.advance(500);
      return supervisor.gauges.startedS === 1;
    });
    startedS = 2;
    await eventually("it is replaced", () => {
      clock.advance(500);
      return supervisor.live !== first && supervisor.live;
    });
    assert.ok(reasons.includes("the attached engine was replaced by another one"), reasons.join());
    assert.deepEqual([supervisor.restarts, supervisor.readyInMs], [1, undefined]);
    await supervisor.stop(0);
    server.closeAllConnections();
    server.close();
  });

  for (const closesIdle of [true, false])
    it(`takes nothing new while it stops, and ends what runs in it${closesIdle ? "" : ", also where it leaves idle connections open"}`, async () => {
      const streams: ServerResponse[] = [];
      const idle = new Set<Socket>();
      const busy = new Set<Socket>();
      const server = createServer((req, res) => {
        if (req.url === "/v1/models") return void res.end('{"data":[{"id":"fake"}]}');
        if (req.url !== "/stream") return void res.end("{}");
        busy.add(req.socket);
        streams.push(res.writeHead(200));
      });
      server.on("connection", (socket) => idle.add(socket));
      await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      const emptied = deferred();
      const o = { servesUnpaired: true, stallMs: 60_000 };
      const clock = manualClock();
      const supervisor = await attached(url, "", o, clock, { emptied: () => emptied.promise });
      const { http } = supervisor.live!;
      const stream = http.fetch({ method: "GET", path: "/stream" });
      await eventually("it runs", () => streams.length === 1);
      // As a server does that was asked to end: it listens no more, and mostly closes what is idle.
      server.close();
      if (closesIdle) for (const socket of idle) if (!busy.has(socket)) socket.destroy();
      await eventually("it takes nothing new", () => (closesIdle || clock.advance(500), supervisor.live === undefined));
      streams[0]!.end("the end");
      assert.equal((await within(stream, "the stream")).body.toString(), "the end");
      assert.match(supervisor.reason, /it stops, or has died/);
      emptied.resolve();
      await eventually("it is given up", () => /has closed its port/.test(supervisor.reason));
      await supervisor.stop(0);
      server.closeAllConnections();
    });

  it("is named when it is wedged", async function () {
    if (process.platform !== "linux") skip(this, "processes are found in /proc");
    await using engine = await startSimEngine({ faults: ["hang"] });
    const reasons: string[] = [];
    const supervisor = await attached(engine.url, "", { servesUnpaired: false, stallMs: 200 });
    supervisor.onChange(() => reasons.push(supervisor.reason));
    await eventually("it is missed", () => supervisor.live === undefined);
    const named = `restart the engine at ${engine.url} (process ${process.pid})`;
    await eventually("both reasons name it", () => reasons.filter((reason) => reason.endsWith(named)).length >= 2);
    assert.match(reasons.find((reason) => reason !== "")!, /^the engine is wedged: no token for/);
    await supervisor.stop(0);
  });

  it("that is wedged is restarted by its operator's command, and used again", async () => {
    const folder = mkdtempSync(join(tmpdir(), "tandem-restart-"));
    const told = join(folder, "told");
    const engine = await startSimEngine({ faults: ["hang"] });
    const { log, lines, events } = logSink();
    const o = { servesUnpaired: false, stallMs: 200 };
    const restartCommand = `echo working on it; echo "$TANDEM_ENGINE_URL $TANDEM_TOKEN" > ${told}.new; mv ${told}.new ${told}`;
    const supervisor = await attached(engine.url, "", o, undefined, { restartCommand, log });
    await eventually("the command ran", () => existsSync(told));
    assert.equal(readFileSync(told, "utf8"), `${engine.url} \n`);
    assert.equal(supervisor.live, undefined);
    // What the command would have done.
    engine.kill();
    await untilQuiet();
    await using again = await startSimEngine({ port: Number(new URL(engine.url).port) });
    await eventually("it is back", () => supervisor.live);
    assert.equal(supervisor.live!.http.origin, again.url);
    await eventually("its output is in the log", () => lines.some(({ line }) => line === "working on it"));
    assert.equal(events("running engine.restart_command").length, 1);
    await supervisor.stop(0);
    rmSync(folder, { recursive: true });
  });

  it("that should be replaced is restarted by that command when its running legs have ended", async () => {
    const engine = await startSimEngine({});
    const { log, events } = logSink();
    const emptied = deferred();
    const folder = mkdtempSync(join(tmpdir(), "tandem-restart-"));
    const restartCommand = `echo "$TANDEM_RESTART_REASON" > ${folder}/told; until [ -e ${folder}/done ]; do sleep 0.01; done`;
    const o = { restartCommand, log, emptied: () => emptied.promise };
    const supervisor = await attached(engine.url, "", undefined, undefined, o);
    const first = supervisor.live!;
    supervisor.restart(first, "much KV is held");
    assert.equal(supervisor.live, first);
    assert.match(supervisor.reason, /when its running legs have ended: much KV is held/);
    assert.equal(events("running engine.restart_command").length, 0);
    emptied.resolve();
    await eventually("the command ran", () => existsSync(join(folder, "told")));
    assert.equal(readFileSync(join(folder, "told"), "utf8"), "much KV is held\n");
    engine.kill();
    await using again = await startSimEngine({ port: Number(new URL(engine.url).port) });
    writeFileSync(join(folder, "done"), "");
    await eventually("it is back", () => supervisor.live !== first && supervisor.live);
    assert.deepEqual([supervisor.live!.http.origin, supervisor.reason], [again.url, ""]);
    assert.equal(events("running engine.restart_command").length, 1);
    await supervisor.stop(0);
    rmSync(folder, { recursive: true });
  });

  it("that should be replaced serves on when that command fails, and is not asked for again at once", async () => {
    await using engine = await startSimEngine({});
    const { log, events } = logSink();
    const supervisor = await attached(engine.url, "", undefined, undefined, { restartCommand: "exit 5", log });
    const first = supervisor.live!;
    supervisor.restart(first, "much KV is held");
    await eventually("it failed", () => events("the engine could not be restarted, and serves on").length === 1);
    assert.deepEqual([supervisor.live, supervisor.reason, supervisor.restarts], [first, "", 0]);
    supervisor.restart(first, "much KV is held");
    assert.deepEqual([supervisor.live, supervisor.reason], [first, ""]);
    await supervisor.stop(0);
  });

  it("is given up when its socket is removed", async () => {
    const folder = mkdtempSync(join(tmpdir(), "tandem-attached-"));
    const path = join(folder, "socket");
    const server = createServer((req, res) => res.end(req.url === "/v1/models" ? '{"data":[{"id":"fake"}]}' : "{}"));
    await new Promise<void>((done) => server.listen(path, done));
    const supervisor = await attached(`unix:${path}`);
    rmSync(path);
    await eventually("it is missed", () => supervisor.live === undefined);
    assert.match(supervisor.reason, /socket was removed/);
    await supervisor.stop(0);
    server.closeAllConnections();
    server.close();
    rmSync(folder, { recursive: true });
  });

  it("is not restarted again and again by a command that fails", async () => {
    const clock = manualClock();
    const engine = await startSimEngine({});
    const { log, events } = logSink();
    const restartCommand = "echo no such unit >&2; exit 5";
    const supervisor = await attached(engine.url, "", undefined, clock, { restartCommand, log });
    const runs = (): number => events("running engine.restart_command").length;
    engine.kill();
    await eventually("it failed", () => {
      clock.advance(100);
      return /ended with exit code 5/.test(supervisor.reason);
    });
    assert.equal(runs(), 1);
    await eventually("it ran again, after a minute", () => {
      clock.advance(5_000);
      return runs() === 2;
    });
    await supervisor.stop(0);
  });

  it("is out when it stalls, and back only when it has counted a token since", async () => {
    await using engine = await startSimEngine({ faults: ["hang"] });
    const ask = (): Promise<unknown> =>
      fetch(`${engine.url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ model: "tandem-sim", prompt: "x", max_tokens: 1 }),
      });
    const supervisor = await attached(engine.url, "", { servesUnpaired: false, stallMs: 200 });
    await eventually("it is missed", () => supervisor.live === undefined);
    await eventually("its health is not believed", () => /token counters have stalled/.test(supervisor.reason));
    engine.clearFaults();
    await ask();
    await eventually("it is back", () => supervisor.live);
    await supervisor.stop(0);
  });

  it("is refused when it serves another model, or wants a key", async () => {
    await using engine = await startSimEngine({});
    await assert.rejects(attached(engine.url, "other"), /serves tandem-sim, not other/);
    const guarded = createServer((req, res) => res.writeHead(req.url === "/health" ? 200 : 401).end());
    await new Promise<void>((done) => guarded.listen(0, "127.0.0.1", done));
    await assert.rejects(attached(`http://127.0.0.1:${(guarded.address() as AddressInfo).port}`), /--engine.api_key/);
    guarded.closeAllConnections();
    guarded.close();
  });

  it("is waited for only up to the limit of its start", async () => {
    await assert.rejects(attached("http://127.0.0.1:1"), /does not work/);
  });
});
