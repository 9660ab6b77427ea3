// Instances as users run them: processes of their own, with an engine that is another one.
import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { InstanceService, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { identityOf } from "../../services/common/process-identity.ts";
import { dialRpc, type RpcChannel } from "../../services/rpc/channel.ts";
import { body, IDENTITY, freshLegId, openDecode, type SimInstance } from "./legs.ts";
import { commandOf, engineOf, familyOf } from "../live/support/processes.ts";
import { askEngine } from "../support/engine-calls.ts";
import { skip } from "../support/skip.ts";
import { eventually, within } from "../support/waits.ts";

const CLI = fileURLToPath(new URL("../../clients/cli/main.ts", import.meta.url));
const START_LIMIT_MS = 30_000;

interface Running {
  readonly child: ChildProcess;
  readonly channel: RpcChannel;
  readonly enginePid: number;
  readonly line: string;
}

describe("an instance's process", function () {
  this.timeout(60_000);
  let state: string;
  const running: Running[] = [];
  beforeEach(() => (state = mkdtempSync(join(tmpdir(), "tandem-state-"))));
  afterEach(async () => {
    for (const { child, channel } of running.splice(0)) {
      child.kill("SIGKILL");
      await channel[Symbol.asyncDispose]();
    }
    rmSync(state, { recursive: true, force: true });
  });

  async function start(role: string, ...flags: string[]): Promise<Running> {
    const child = spawn(
      process.execPath,
      [
        "--import=tsx",
        CLI,
        role,
        "--grpc.listen=127.0.0.1:0",
        "--registry.address=",
        "--kv.listen=43001",
        "--engine=sim",
        ...flags,
      ],
      {
        stdio: ["ignore", "pipe", "pipe"],
        env: { ...process.env, XDG_STATE_HOME: state, TMPDIR: state, TANDEM_LOG_FORMAT: "json" },
      },
    );
    let errors = "";
    child.stderr!.on("data", (chunk: Buffer) => (errors += chunk.toString()));
    const ready = once(child.stdout!, "data").then(([chunk]) => String(chunk));
    const died = once(child, "exit").then(() => Promise.reject(new Error(errors)));
    died.catch(() => {});
    const line = await within(Promise.race([ready, died]), "the ready line", START_LIMIT_MS);
    const address = /ready on (\S+?):? /.exec(line)?.[1]?.replace(/:$/, "");
    assert.ok(address !== undefined, line);
    const [record] = readdirSync(join(state, "tandem", "engines")).map((name) =>
      JSON.parse(readFileSync(join(state, "tandem", "engines", name), "utf8")),
    );
    const it: Running = { child, channel: dialRpc(address), enginePid: record.engine.pid, line };
    running.push(it);
    return it;
  }
  /** Its engine knows a key of its own, not the join token, and takes no faults. */
  async function keepsToItself({ child, enginePid }: Running): Promise<void> {
    const environment = readFileSync(`/proc/${enginePid}/environ`, "utf8");
    assert.match(environment, /\0TANDEM_KV_KEY=[0-9a-f]{64}\0/);
    assert.doesNotMatch(environment + commandOf(enginePid), /JOIN-TOKEN/);
    const { url } = engineOf(child.pid!);
    assert.equal((await askEngine(url, "/sim/fault", { method: "POST", body: '"hang"' })).status, 404);
    assert.equal((await askEngine(url, "/health")).status, 200);
  }
  const load = async ({ channel }: Running) =>
    (await channel.client(InstanceService).getInfo({}, { timeoutMs: 2_000 })).load!;

  it("describes itself in one line, keeps its secrets, and drains and ends with its engine when its terminal closes", async () => {
    const it = await start("prefill", "--slots=3", "--token=JOIN-TOKEN");
    assert.match(
      it.line,
      /^prefill ready on 127\.0\.0\.1:\d+: tandem-sim on sim \S+, KV by p2p-zmq at 127\.0\.0\.1:43\d\d\d, 3 slots\n$/,
    );
    if (process.platform === "linux") await keepsToItself(it);
    const exited = once(it.child, "exit");
    it.child.kill("SIGHUP");
    assert.deepEqual(await within(exited, "its exit"), [0, null]);
    await eventually("its engine is gone", () => identityOf(it.enginePid) === undefined);
    assert.deepEqual(readdirSync(join(state, "tandem", "engines")), []);
  });

  it("ends with its engine at SIGINT without waiting for a running leg", async () => {
    const it = await start("decode");
    const call = openDecode({ channel: it.channel } as unknown as SimInstance);
    const pair = { legId: freshLegId(), path: "/v1/completions", body: body() };
    call.reserve(pair, undefined, { identity: IDENTITY, prefillKvAddress: "127.0.0.1:9" });
    await call.next();
    const exited = once(it.child, "exit");
    it.child.kill("SIGINT");
    await assert.rejects(call.next(), (error: { code?: string }) => error.code === "instance_lost");
    await within(exited, "its exit", START_LIMIT_MS);
    await eventually("its engine is gone", () => identityOf(it.enginePid) === undefined);
  });

  it("takes its engine with it when it is killed", async () => {
    const it = await start("decode");
    it.child.kill("SIGKILL");
    await eventually("its engine is gone", () => identityOf(it.enginePid) === undefined);
  });

  it("leaves no engine behind that nothing watches any more, its guardian killed as well", async function () {
    if (process.platform !== "linux") skip(this, "processes are found in /proc");
    const it = await start("decode");
    const guards = familyOf(it.child.pid!).filter((pid) => commandOf(pid).startsWith("/bin/sh "));
    assert.equal(guards.length, 2);
    // Stopped, so that it can't kill the group of a guardian that is gone.
    it.child.kill("SIGSTOP");
    for (const pid of guards) process.kill(pid, "SIGKILL");
    assert.ok(identityOf(it.enginePid) !== undefined);
    it.child.kill("SIGKILL");
    await eventually("its engine has ended by itself", () => identityOf(it.enginePid) === undefined);
  });

  it("restarts a killed engine on a fresh KV port, and serves again", async () => {
    const it = await start("decode");
    const control = it.channel.client(InstanceService);
    const before = (await control.getInfo({})).info!;
    process.kill(it.enginePid, "SIGKILL");
    await eventually("it is not serving", async () => (await load(it)).state === State.STARTING);
    assert.match((await load(it)).reason, /^the engine /);
    await eventually("it serves again", async () => (await load(it)).state === State.SERVING, START_LIMIT_MS);
    const after = (await control.getInfo({})).info!;
    assert.equal(after.instanceId, before.instanceId);
    assert.ok(Number(after.kvAddress.split(":")[1]) > Number(before.kvAddress.split(":")[1]));
  });

  it("fails to start with the last lines of the engine's output", async () => {
    await assert.rejects(start("decode", "--engine.flag=--fault=nonsense"), /unknown fault/);
  });
});
