// Registration and discovery through a real Consul.
import assert from "node:assert/strict";
import { create } from "@bufbuild/protobuf";
import { InfoSchema, Role, type Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { defineConfig, loadConfig, section } from "../../services/common/config.ts";
import {
  consulWatcher,
  instanceRecord,
  registerInConsul,
  type ConsulWatcher,
} from "../../services/discovery/consul.ts";
import type { ConsulRegisterOptions } from "../../services/discovery/consul-register.ts";
import { consulCheckSettings, consulSettings } from "../../services/discovery/consul-settings.ts";
import type { Objection, Registration, SelfReport } from "../../services/discovery/registry.ts";
import { serveRpc, type RpcServer } from "../../services/rpc/server.ts";
import { freeConsulPorts, startConsul, type TestConsul } from "../support/consul.ts";
import { logSink, silentLog } from "../support/log-sink.ts";
import { skip } from "../support/skip.ts";
import { consul } from "../support/tools.ts";
import { eventually } from "../support/waits.ts";

const settings = defineConfig("test", { consul: section("Consul", { ...consulSettings, ...consulCheckSettings }) });
const configOf = (address: string, flags: readonly string[] = []) =>
  loadConfig(settings, { argv: ["--consul.address", address, ...flags], env: {} }).consul;

interface Served extends AsyncDisposable {
  readonly info: Info;
  readonly server: RpcServer;
  readonly registration: Registration;
  standing: SelfReport;
}

/** A process that serves health, and registers itself. */
async function register(
  config: ReturnType<typeof configOf>,
  instanceId: string,
  change: Partial<Info> = {},
  o: Partial<ConsulRegisterOptions> = {},
): Promise<Served> {
  const server = await serveRpc({ listen: "127.0.0.1:0", services: [], log: silentLog, graceMs: 0 });
  server.setServing(true);
  const info = create(InfoSchema, {
    instanceId,
    role: Role.DECODE,
    model: "Llama 3/8B",
    connector: "nixl",
    grpcAddress: server.address,
    kvAddress: "127.0.0.1:21001",
    engine: "vllm",
    engineVersion: "0.24.0",
    tandemVersion: "0.1.0",
    tandemCommit: "0123456789ab",
    slotLimit: 64,
    blockSize: 16,
    tpSize: 2,
    dtype: "bfloat16",
    maxModelLen: 8192,
    modelRoot: "meta-llama/Llama-3-8B",
    startedUnixMs: 1_700_000_000_123n,
    pid: 42,
    ...change,
  } as never);
  const self = { info, standing: { serving: true, text: "serving", load: "63 of 64 slots free" } };
  const registration = registerInConsul(
    config,
    () => instanceRecord(self.info),
    () => self.standing,
    { deployment: "default", log: silentLog, ...o },
  );
  return Object.assign(self, {
    server,
    registration,
    async [Symbol.asyncDispose]() {
      await registration[Symbol.asyncDispose]();
      await server[Symbol.asyncDispose]();
    },
  });
}

interface Seen {
  readonly entries: readonly Info[];
  readonly objections: ReadonlyMap<string, Objection>;
}

function watch(watcher: ConsulWatcher): { now(): Seen; ids(): string[]; stop(): Promise<void> } {
  let seen: Seen = { entries: [], objections: new Map() };
  const handle = watcher.watch((entries, objections = new Map()) => (seen = { entries, objections }));
  return {
    now: () => seen,
    ids: () => seen.entries.map(({ instanceId }) => instanceId).sort(),
    stop: async () => {
      await handle[Symbol.asyncDispose]();
      watcher.close();
    },
  };
}

describe("Consul as the registry", function () {
  this.timeout(90_000);
  let agent: TestConsul;
  let config: ReturnType<typeof configOf>;
  let seen: ReturnType<typeof watch>;

  before(async function () {
    const found = await consul();
    if ("missing" in found) skip(this, found.missing);
    agent = await startConsul();
    config = configOf(agent.address);
    seen = watch(consulWatcher(config, { deployment: "default", log: silentLog, forgetMs: 1_000 }));
  });
  after(async () => {
    await seen?.stop();
    await agent?.kill();
  });
  const none = (): Promise<true> => eventually("none is listed", () => seen.ids().length === 0);

  it("gives the router all facts of an instance", async () => {
    await using decode = await register(config, "decode-a");
    const [info] = await eventually("it is listed", () => seen.now().entries.length === 1 && seen.now().entries);
    assert.deepEqual(info, decode.info);
    await eventually("its checks pass", () => seen.now().objections.size === 0);
  });

  it("shows name, address, meta, tags and checks in readable form", async () => {
    await none();
    await using decode = await register(config, "decode-b");
    const [entry] = await eventually("both checks pass", async () => {
      const entries = await agent.get("/v1/health/service/tandem-decode?passing=true");
      return entries.length === 1 && entries[0].Checks.every((check: any) => check.Output !== "") ? entries : undefined;
    });
    const [host, port] = decode.server.address.split(":");
    assert.deepEqual([entry.Service.Address, entry.Service.Port], [host, Number(port)]);
    assert.deepEqual(entry.Service.Tags, ["default", "Llama-3-8B", "vllm", "nixl"]);
    const { host: _host, ...meta } = entry.Service.Meta;
    assert.deepEqual(meta, {
      deployment: "default",
      role: "decode",
      model: "Llama 3/8B",
      max_model_len: "8192",
      connector: "nixl",
      kv_address: "127.0.0.1:21001",
      grpc_address: decode.server.address,
      engine: "vllm",
      engine_version: "0.24.0",
      block_size: "16",
      tp_size: "2",
      dtype: "bfloat16",
      model_root: "meta-llama/Llama-3-8B",
      slots: "64",
      tandem_version: "0.1.0",
      tandem_commit: "0123456789ab",
      started: "2023-11-14T22:13:20.123Z",
      pid: "42",
    });
    const state = entry.Checks.find((check: any) => check.Name === "state");
    assert.match(state.Output, /^serving; 63 of 64 slots free at \d\d:\d\d:\d\d UTC$/);
    decode.server.setServing(false, "the engine exited: out of memory");
    const output = await eventually("the agent's check fails", async () => {
      const checks = await agent.get("/v1/health/checks/tandem-decode");
      return checks.find((check: any) => check.Name === "health" && check.Status === "critical")?.Output as
        | string
        | undefined;
    });
    assert.match(output, /the engine exited: out of memory/);
    const objection = await eventually(
      "the router hears",
      () => /memory/.test(seen.now().objections.get("decode-b")?.reason ?? "") && seen.now().objections.get("decode-b"),
    );
    assert.equal(objection.kind, "critical");
    assert.match(objection.reason, /"health".*out of memory/);
  });

  it("reports a drain at once, and its end", async () => {
    await none();
    await using decode = await register(config, "decode-c");
    await eventually("it is listed", () => seen.ids().length === 1 && seen.now().objections.size === 0);
    decode.standing = { serving: false, text: "draining: an operator asked", load: "63 of 64 slots free" };
    decode.registration.update();
    const objection = await eventually("the drain is heard", () => seen.now().objections.get("decode-c"));
    assert.match(objection.reason, /"state".*draining: an operator asked$/);
    decode.standing = { serving: true, text: "serving", load: "64 of 64 slots free" };
    decode.registration.update();
    await eventually("its end is heard", () => seen.now().objections.size === 0);
  });

  it("treats maintenance mode of a service or its node as a drain", async () => {
    await none();
    await using decode = await register(config, "decode-d");
    await eventually("it passes", () => seen.ids().length === 1 && seen.now().objections.size === 0);
    for (const target of [`service/maintenance/decode-d`, "maintenance"]) {
      await agent.put(`/v1/agent/${target}?enable=true&reason=new+memory`);
      const objection = await eventually("maintenance is heard", () => seen.now().objections.get("decode-d"));
      assert.equal(objection.kind, "maintenance");
      assert.match(objection.reason, /new memory/);
      await agent.put(`/v1/agent/${target}?enable=false`);
      await eventually("its end is heard", () => seen.now().objections.size === 0);
    }
    assert.equal(decode.info.instanceId, "decode-d");
  });

  it("reports new facts of a known instance", async () => {
    await none();
    await using decode = await register(config, "decode-e");
    await eventually("it is listed", () => seen.ids().length === 1);
    Object.assign(decode.info, { kvAddress: "127.0.0.1:21002" });
    decode.registration.update();
    await eventually("the new address is known", () => seen.now().entries[0]?.kvAddress === "127.0.0.1:21002");
  });

  it("keeps the entry of one that left, as missing, and forgets it soon", async () => {
    await none();
    const decode = await register(config, "decode-f");
    await eventually("it is listed", () => seen.ids().length === 1);
    await decode[Symbol.asyncDispose]();
    assert.equal(await agent.get("/v1/agent/service/decode-f"), undefined);
    await eventually("it is missing", () => seen.now().objections.get("decode-f")?.kind === "missing");
    await none();
  });

  it("registers an instance again that was deregistered by hand", async () => {
    await none();
    await using _decode = await register(config, "decode-g");
    await eventually("it is listed", () => seen.ids().length === 1);
    await agent.put("/v1/agent/service/deregister/decode-g");
    await eventually("it is back", async () => (await agent.get("/v1/agent/service/decode-g")) !== undefined);
    await eventually("the router believes it again", () => seen.ids().length === 1 && seen.now().objections.size === 0);
  });

  it("removes the entry that a killed instance left at the same address", async () => {
    await none();
    await using decode = await register(config, "decode-h", { startedUnixMs: 2_000n });
    const [host, port] = decode.server.address.split(":");
    await eventually("it is listed", () => seen.ids().length === 1);
    await agent.put("/v1/agent/service/register", {
      ID: "decode-ghost",
      Name: "tandem-decode",
      Address: host,
      Port: Number(port),
      Meta: { ...meta(decode.info), started: new Date(1_000).toISOString() },
    });
    await eventually(
      "the ghost is listed",
      async () => (await agent.get("/v1/catalog/service/tandem-decode")).length === 2,
    );
    await eventually("the newer one is believed", () => seen.ids().join() === "decode-h");
    await using _next = await register(config, "decode-i", {
      grpcAddress: decode.server.address,
      startedUnixMs: 3_000n,
    });
    await eventually("the ghost is out", async () => (await agent.get("/v1/agent/service/decode-ghost")) === undefined);
  });

  it("leaves out a service that can't be an instance, and logs which and why", async () => {
    await none();
    const sink = logSink();
    const other = watch(consulWatcher(configOf(agent.address), { deployment: "default", log: sink.log }));
    await agent.put("/v1/agent/service/register", {
      ID: "stranger",
      Name: "tandem-decode",
      Port: 80,
      Meta: { deployment: "default", model: "m" },
    });
    const [line] = await eventually(
      "it says so",
      () =>
        sink.events("a service in Consul can't be used").length > 0 && sink.events("a service in Consul can't be used"),
    );
    assert.equal(line!["serviceId"], "stranger");
    await other.stop();
    await agent.put("/v1/agent/service/deregister/stranger");
  });

  it("follows settings in the KV store", async () => {
    const watcher = consulWatcher(configOf(agent.address), { deployment: "default", log: silentLog });
    let texts: ReadonlyMap<string, string> | undefined;
    const handle = watcher.watchSettings("tandem/config/", (now) => (texts = now));
    await eventually("there are none", () => texts?.size === 0);
    await agent.put("/v1/kv/tandem/config/queue.limit", "512");
    await agent.put("/v1/kv/tandem/configuration", "not ours");
    await eventually("one is heard", () => texts?.get("queue.limit") === "512" && texts.size === 1);
    await agent.put("/v1/txn", [
      { KV: { Verb: "set", Key: "tandem/config/stall_ms", Value: Buffer.from("7").toString("base64") } },
      { KV: { Verb: "delete", Key: "tandem/config/queue.limit" } },
    ]);
    await eventually("both changes come together", () => texts?.size === 1 && texts.get("stall_ms") === "7");
    await handle[Symbol.asyncDispose]();
    watcher.close();
  });

  it("reports by itself where the agent can't ask", async () => {
    await none();
    const ttl = configOf(agent.address, ["--consul.check", "ttl"]);
    await using decode = await register(ttl, "decode-j", {}, { ttlMs: 500 });
    await eventually("it passes", () => seen.ids().length === 1 && seen.now().objections.size === 0);
    const { Checks: checks } = (await agent.get("/v1/health/service/tandem-decode"))[0];
    assert.deepEqual(
      checks.map((check: any) => check.Name).filter((name: string) => !/serf/i.test(name)),
      ["state"],
    );
    // It beats on: later than its TTL it still passes.
    let beats = 0;
    decode.standing = {
      serving: true,
      get text() {
        return `beat ${++beats}`;
      },
    };
    decode.registration.update();
    await eventually("it has been renewed four times and passes", async () => {
      const { Status, Output } = (await agent.get("/v1/agent/checks"))["service:decode-j:state"];
      return Status === "passing" && Number(/^beat (\d+)/.exec(Output)?.[1]) > 4;
    });
    await eventually("the router sees it so", () => seen.now().objections.size === 0);
    await decode[Symbol.asyncDispose]();
  });
});

function meta(info: Info): Record<string, string> {
  return {
    deployment: "default",
    model: info.model,
    connector: info.connector,
    grpc_address: info.grpcAddress,
    kv_address: info.kvAddress,
  };
}

describe("a Consul that goes and comes back empty", function () {
  this.timeout(90_000);
  it("finds all registered again, and the router has missed none of them meanwhile", async function () {
    const found = await consul();
    if ("missing" in found) skip(this, found.missing);
    const ports = await freeConsulPorts();
    let agent = await startConsul({ ports });
    const sink = logSink();
    const config = configOf(agent.address);
    const watcher = consulWatcher(configOf(agent.address), { deployment: "default", log: sink.log, forgetMs: 60_000 });
    const seen = watch(watcher);
    const served = await Promise.all(["a", "b", "c"].map((id) => register(config, id, {}, sink)));
    await eventually(
      "all are listed",
      () => seen.ids().length === 3 && seen.now().objections.size === 0 && watcher.health.up,
    );
    let least = 3;
    const changes: boolean[] = [];
    watcher.onHealth(() => changes.push(watcher.health.up));
    await agent.kill();
    await eventually("the outage is seen", () => !watcher.health.up);
    assert.match(watcher.health.error, /does not answer/);
    agent = await startConsul({ ports });
    try {
      await eventually(
        "all are registered again",
        async () => {
          least = Math.min(least, seen.now().entries.length - seen.now().objections.size);
          return (await agent.get("/v1/catalog/service/tandem-decode")).length === 3;
        },
        20_000,
      );
      await eventually("Consul is up again", () => watcher.health.up && watcher.health.error === "", 20_000);
      assert.equal(least, 3);
      assert.deepEqual(changes, [false, true]);
      assert.equal(sink.events("Consul is away; the router goes on with the instances it knows").length, 1);
      assert.equal(sink.events("registered in Consul again").length, 3);
    } finally {
      await Promise.all(served.map((one) => one[Symbol.asyncDispose]()));
      await seen.stop();
      await agent.kill();
    }
  });
});
