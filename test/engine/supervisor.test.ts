import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { createServer as createTcpServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { socketPathOf } from "../../services/engine/http.ts";
import { launcherOf } from "../../services/engine/launch.ts";
import type { EngineSource } from "../../services/engine/engine.ts";
import type { EngineWork } from "../../services/engine/progress.ts";
import { identityOf } from "../../services/common/process-identity.ts";
import { spawnedEngine, type SpawnedOptions } from "../../services/engine/spawned.ts";
import { EngineSupervisor, type SupervisorOptions } from "../../services/engine/supervisor.ts";
import { p2pKvLoss } from "../../services/engine/vllm-output.ts";
import { logSink, silentLog } from "../support/log-sink.ts";
import { manualClock } from "../support/manual-clock.ts";
import { skip } from "../support/skip.ts";
import { deferred, eventually, within } from "../support/waits.ts";

const exec = promisify(execFile);

// Speaks just enough to be found ready: a Node without TypeScript starts in 40 ms.
const ENGINE = `
  const [socketPath, kvPort] = process.argv.slice(1);
  const kvSockets = new Set();
  const kv = require("net").createServer((socket) => kvSockets.add(socket)).on("error", fail);
  kv.listen(Number(kvPort), "127.0.0.1");
  let broken = false;
  require("http").createServer((req, res) => {
    if (broken) return req.socket.destroy();
    if (req.url === "/break") broken = true;
    if (req.url === "/core-dies") {
      kv.close();
      for (const socket of kvSockets) socket.destroy();
    }
    if (req.url === "/crash") process.exit(7);
    if (req.url === "/silence") return;
    if (req.url === "/lose") return console.log("WARNING [p2p_nccl_connector.py:202] kv_cache is None, cmpl-1");
    if (req.url === "/pid") return res.end(String(process.pid));
    if (req.url === "/v1/models") return res.end('{"data":[{"id":"fake","max_model_len":64}]}');
    if (req.url === "/version") return res.end('{"version":"1.2.3"}');
    if (req.url === "/metrics") return res.end('vllm:num_requests_running 4\\n');
    res.end();
  }).on("error", fail).listen(socketPath);
  function fail(error) { console.error("Error: " + error.message); process.exit(1); }
`;

describe("an engine that Tandem starts", () => {
  let recordsFolder: string;
  const supervisors: EngineSupervisor[] = [];
  beforeEach(() => (recordsFolder = mkdtempSync(join(tmpdir(), "tandem-engines-"))));
  afterEach(async () => {
    await Promise.all(supervisors.splice(0).map((supervisor) => supervisor.stop(1_000)));
    rmSync(recordsFolder, { recursive: true });
  });

  const sourceOf = (o: Partial<SpawnedOptions> = {}): EngineSource =>
    spawnedEngine({
      kind: "vllm",
      kvHost: "127.0.0.1",
      kvPort: 42_001,
      publishesKvAddress: true,
      model: "",
      servesUnpaired: false,
      startTimeoutMs: 10_000,
      recordsFolder,
      log: silentLog,
      launch: ({ socketPath, kvPort }) => ({
        command: process.execPath,
        args: ["-e", ENGINE, "--", socketPath, String(kvPort)],
      }),
      ...o,
    });

  async function start(
    o: Partial<SpawnedOptions> = {},
    stallMs = 60_000,
    more: Partial<SupervisorOptions> = {},
  ): Promise<EngineSupervisor> {
    const source = sourceOf(o);
    const work = (): EngineWork => ({ legs: 1, promptTokens: 0 });
    const supervisor = new EngineSupervisor({ source, log: silentLog, work, stallMs, ...more });
    await supervisor.start(new AbortController().signal);
    supervisors.push(supervisor);
    return supervisor;
  }
  const pidOf = async (supervisor: EngineSupervisor): Promise<number> =>
    Number((await supervisor.live!.http.fetch({ method: "GET", path: "/pid" })).body.toString());

  it("is ready when it answers, with its facts and a record on disk, and leaves neither behind", async () => {
    const supervisor = await start();
    assert.deepEqual(supervisor.live!.facts, {
      kind: "vllm",
      version: "1.2.3",
      model: "fake",
      maxModelLen: 64,
      blockSize: 0,
    });
    assert.match(supervisor.live!.kvAddress, /^127\.0\.0\.1:42\d\d\d$/);
    assert.equal(readdirSync(recordsFolder).length, 1);
    await eventually("its gauges are read", () => supervisor.gauges.running === 4);
    const pid = await pidOf(supervisor);
    await supervisor.stop(1_000);
    assert.equal(identityOf(pid), undefined);
    assert.equal(supervisor.live, undefined);
    await eventually("the record is gone", () => readdirSync(recordsFolder).length === 0);
  });

  it("listens on a socket that no other user reaches, in a folder that goes with it", async function () {
    const supervisor = await start();
    const socketPath = socketPathOf(supervisor.live!.http.origin)!;
    assert.equal(statSync(dirname(socketPath)).mode & 0o777, 0o700);
    const curl = (ids: { uid?: number; gid?: number }): Promise<string> =>
      exec(
        "curl",
        ["--silent", "--show-error", "-X", "POST", "--unix-socket", socketPath, "http://engine/pid"],
        ids,
      ).then(
        ({ stdout }) => stdout,
        (error: { stderr: string }) => error.stderr,
      );
    const hasCurl = await exec("curl", ["--version"]).then(
      () => true,
      () => false,
    );
    if (hasCurl && process.getuid?.() === 0) {
      assert.equal(await curl({}), String(await pidOf(supervisor)));
      assert.match(await curl({ uid: 65_534, gid: 65_534 }), /^curl: \(7\)/);
    }
    await supervisor.stop(1_000);
    await eventually("its folder is gone", () => !existsSync(dirname(socketPath)));
    if (!hasCurl || process.getuid?.() !== 0) skip(this, "only root can ask as another user, with curl");
  });

  it("is restarted, at another socket, when its socket was removed", async () => {
    const supervisor = await start();
    const first = supervisor.live!;
    rmSync(dirname(socketPathOf(first.http.origin)!), { recursive: true });
    const second = await eventually("the next engine", () => supervisor.live !== first && supervisor.live);
    assert.notEqual(second.http.origin, first.http.origin);
    assert.equal((await second.http.get("/health", 1_000)).status, 200);
  });

  it("is restarted on a fresh KV port when it dies, and its calls end at once", async () => {
    const supervisor = await start();
    const first = supervisor.live!;
    const changes: string[] = [];
    supervisor.onChange(() => changes.push(supervisor.reason));
    const silent = first.http.fetch({ method: "GET", path: "/silence" });
    silent.catch(() => {});
    await first.http.fetch({ method: "GET", path: "/crash" }).catch(() => {});
    // By the socket's reset or by the guardian's report, whichever comes first.
    await assert.rejects(within(silent, "the end of the call"), /ECONNRESET|socket hang up|engine stopped/);
    await eventually("it is missed", () => supervisor.live !== first);
    assert.match(changes.join(), /exited with code 7/);
    const second = await eventually("the next engine", () => supervisor.live);
    assert.ok(Number(second.kvAddress.split(":")[1]) > Number(first.kvAddress.split(":")[1]));
    assert.deepEqual([supervisor.restarts, supervisor.reason], [1, ""]);
    assert.ok(changes.includes(""));
  });

  it("whose core dies takes no call from then on, and is restarted, although its API server lives", async () => {
    const held = await start({}, 60_000, { holdsKvPort: true });
    const first = held.live!;
    const pid = await pidOf(held);
    await first.http.fetch({ method: "GET", path: "/core-dies" });
    await eventually("it takes no calls", () => held.live === undefined);
    assert.match(held.reason, /port is closed|restart/);
    await eventually("the next engine", () => held.live);
    assert.deepEqual([held.restarts, identityOf(pid)], [1, undefined]);
  });

  it("is restarted when its process lives and breaks off every request", async () => {
    const work = (): EngineWork => ({ legs: 0, promptTokens: 0 });
    const clock = manualClock();
    const supervisor = await start({}, 15_000, { work, clock });
    const first = supervisor.live!;
    const pid = await pidOf(supervisor);
    await first.http.fetch({ method: "GET", path: "/break" });
    const brokeMs = clock.nowMs();
    await eventually("it is given up", () => (clock.advance(500), supervisor.live !== first));
    assert.ok(clock.nowMs() - brokeMs >= 15_000, "it may be busy for a moment");
    await eventually("the next engine", () => (clock.advance(500), supervisor.live));
    assert.equal(identityOf(pid), undefined);
    assert.equal(supervisor.restarts, 1);
  });

  it("is killed and restarted once when its state can't be trusted", async () => {
    const supervisor = await start();
    const first = supervisor.live!;
    const pid = await pidOf(supervisor);
    supervisor.restart(first, "KV is lost");
    supervisor.restart(first, "KV is lost");
    await eventually("the old one is gone", () => identityOf(pid) === undefined);
    await eventually("the next engine", () => supervisor.live);
    assert.equal(supervisor.restarts, 1);
  });

  it("is restarted after its running legs have ended, and reports meanwhile that it is about to be", async () => {
    const empty = deferred();
    const supervisor = await start({}, 60_000, { emptied: () => empty.promise });
    const first = supervisor.live!;
    const pid = await pidOf(supervisor);
    supervisor.restart(first, "KV is lost");
    assert.equal(supervisor.live, first);
    assert.match(supervisor.reason, /when its running legs have ended: KV is lost/);
    assert.equal(await pidOf(supervisor), pid, "it goes on");
    empty.resolve();
    await eventually("the next engine", () => supervisor.live !== undefined && supervisor.live !== first);
    assert.deepEqual([supervisor.restarts, supervisor.reason], [1, ""]);
  });

  it("is restarted at once when it stalls while its running legs end", async () => {
    const frozen = await start({}, 200, { emptied: () => new Promise<void>(() => {}) });
    frozen.restart(frozen.live!, "KV is lost");
    await eventually("it is found", () => frozen.restarts === 1);
  });

  it("is restarted on a fresh KV port when it stalls, and its calls end, although it reports that it is healthy", async () => {
    const { log, events } = logSink();
    const supervisor = await start({}, 200, { log });
    const first = supervisor.live!;
    const silent = first.http.fetch({ method: "GET", path: "/silence" });
    silent.catch(() => {});
    await eventually("it is missed", () => supervisor.live !== first);
    await assert.rejects(within(silent, "the end of the call"), /engine stopped/);
    const second = await eventually("the next engine", () => supervisor.live);
    assert.notEqual(second.kvAddress, first.kvAddress);
    assert.match(String(events("the engine is lost")[0]?.["why"]), /wedged: no token for 0\.\d s with 1 request in it/);
  });

  it("that hung because its partner died says so of its calls: no request is the cause", async () => {
    for (const [partnerIsGone, code] of [
      [false, "engine_failed"],
      [true, "instance_lost"],
    ] as const) {
      const supervisor = await start({}, 200, { work: () => ({ legs: 1, promptTokens: 0, partnerIsGone }) });
      const silent = supervisor.live!.http.fetch({ method: "GET", path: "/silence" });
      await assert.rejects(within(silent, "the end of the call"), { code });
    }
  });

  it("takes no legs from the death of its partner on, until it has shown that it works", async () => {
    let partnerIsGone = false;
    const supervisor = await start({}, 60_000, { work: () => ({ legs: 1, promptTokens: 0, partnerIsGone }) });
    partnerIsGone = true;
    supervisor.look();
    assert.match(supervisor.reason, /^a decode engine died with KV on its way to it/);
    assert.ok(supervisor.live !== undefined, "what runs in it goes on");
    assert.equal(supervisor.readyInMs, 1_000);
    partnerIsGone = false;
    supervisor.look();
    assert.deepEqual([supervisor.reason, supervisor.readyInMs], ["", undefined]);
    assert.equal(supervisor.restarts, 0);
  });

  it("fails to start with its last output, and leaves nothing", async () => {
    const launch = (): { command: string; args: string[] } => ({
      command: "/bin/sh",
      args: ["-c", "echo loading; echo 'RuntimeError: no GPU here' >&2; exit 5"],
    });
    await assert.rejects(start({ launch }), /exited with code 5 before it was ready[^]*RuntimeError: no GPU here/);
    assert.equal(readdirSync(recordsFolder).length, 0);
  });

  it("is killed, its calls ended, and restarted when its output says that its answers are wrong", async () => {
    const launch: SpawnedOptions["launch"] = ({ socketPath, kvPort }) => ({
      command: process.execPath,
      args: ["-e", ENGINE, "--", socketPath, String(kvPort)],
      brokenBy: p2pKvLoss,
    });
    const supervisor = await start({ launch });
    const reasons: string[] = [];
    supervisor.onChange(() => reasons.push(supervisor.reason));
    const first = supervisor.live!;
    const pid = await pidOf(supervisor);
    // Never answered: the line is all that is to be seen of it.
    // By the socket's reset or by the guardian's report, whichever comes first.
    await assert.rejects(
      first.http.fetch({ method: "POST", path: "/lose" }),
      /ECONNRESET|socket hang up|engine stopped/,
    );
    await eventually("another one works", () => supervisor.live !== undefined && supervisor.live !== first);
    assert.equal(identityOf(pid), undefined);
    assert.match(reasons[0]!, /no memory for KV that it received/);
  });

  it("fails to start when it serves another model, or never gets ready", async () => {
    await assert.rejects(start({ model: "other" }), /it serves fake, not other/);
    await assert.rejects(
      start({ startTimeoutMs: 100, launch: () => ({ command: "/bin/sleep", args: ["60"] }) }),
      /not ready within 100 ms/,
    );
  });

  it("gives up its start when it must stop", async () => {
    const stop = new AbortController();
    const launch = () => ({ command: "/bin/sleep", args: ["60"] });
    const source = sourceOf({ startTimeoutMs: 60_000, launch });
    const work = (): EngineWork => ({ legs: 0, promptTokens: 0 });
    const starting = new EngineSupervisor({ source, log: silentLog, work, stallMs: 60_000 }).start(stop.signal);
    await eventually("it was started", () => readdirSync(recordsFolder).length === 1);
    stop.abort(new Error("told to stop"));
    await assert.rejects(within(starting, "the end of the start", 2_000), /told to stop/);
    await eventually("its record is gone", () => readdirSync(recordsFolder).length === 0);
  });

  it("takes the next KV port if the first is taken", async () => {
    const taken = createTcpServer();
    await new Promise<void>((done) => taken.listen(0, "127.0.0.1", done));
    const { port } = taken.address() as AddressInfo;
    const supervisor = await start({ kvPort: port });
    assert.ok(Number(supervisor.live!.kvAddress.split(":")[1]) > port);
    taken.close();
  });

  it("is refused for kinds that can't be started, naming the way that works", () => {
    const o = { role: "decode", connector: "nixl", model: "", slots: 1, flags: [] } as const;
    const vllm = { command: "", servedName: "", gpus: "", poolGib: 4, hfToken: "" };
    assert.throws(() => launcherOf("vllm", o, vllm), /--model/);
  });

  it("runs the model file that it is given, or the one that ships", async () => {
    const o = { role: "decode", connector: "p2p-zmq", model: "a.gguf", slots: 1, flags: [] } as const;
    const vllm = { command: "", servedName: "named", gpus: "", poolGib: 4, hfToken: "" };
    const ports = { socketPath: "/run/engine.sock", kvHost: "127.0.0.1", kvPort: 2 };
    const { args } = await launcherOf("embedded", o, vllm)(ports);
    assert.ok(args.includes("--model.file=a.gguf") && args.includes("--model.name=named"), args.join(" "));
    assert.ok((await launcherOf("embedded", { ...o, model: "" }, vllm)(ports)).args.includes("--no-sim"));
  });
});
