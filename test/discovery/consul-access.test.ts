// Consul with access control and with TLS: the policies of docs/consul.md are all that is needed, and what is missing
// is named.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { create } from "@bufbuild/protobuf";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { InfoSchema, Role } from "#gen/tandem/instance/v1/instance_pb.js";
import { defineConfig, loadConfig, section } from "../../services/common/config.ts";
import { consulWatcher, instanceRecord, registerInConsul } from "../../services/discovery/consul.ts";
import { consulCheckSettings, consulSettings } from "../../services/discovery/consul-settings.ts";
import { startConsul, type TestConsul } from "../support/consul.ts";
import { logSink } from "../support/log-sink.ts";
import { skip } from "../support/skip.ts";
import { consul } from "../support/tools.ts";
import { eventually, freePort } from "../support/waits.ts";

const definition = defineConfig("test", { consul: section("Consul", { ...consulSettings, ...consulCheckSettings }) });
const configOf = (env: Record<string, string>) => loadConfig(definition, { argv: [], env }).consul;
const DOCS = readFileSync(fileURLToPath(new URL("../../docs/consul.md", import.meta.url)), "utf8");

const decode = () =>
  instanceRecord(
    create(InfoSchema, {
      instanceId: "decode-1",
      role: Role.DECODE,
      model: "m",
      connector: "nixl",
      grpcAddress: "127.0.0.1:9",
      startedUnixMs: 1_000n,
    }),
  );
const serving = () => ({ serving: true, text: "serving" });

/** The rules that docs/consul.md gives for `role`, as they stand there. */
function documentedPolicy(role: "instances" | "router"): string {
  const found = new RegExp(`<!-- policy: ${role} -->\\s*\`\`\`hcl\\n([\\s\\S]*?)\`\`\``).exec(DOCS);
  assert.ok(found, `docs/consul.md has no policy of ${role}`);
  return found[1]!;
}

describe("Consul with access control", function () {
  this.timeout(90_000);
  const root = "11111111-1111-1111-1111-111111111111";
  let agent: TestConsul;
  before(async function () {
    const found = await consul();
    if ("missing" in found) skip(this, found.missing);
    agent = await startConsul({
      config: { acl: { enabled: true, default_policy: "deny", tokens: { initial_management: root, agent: root } } },
    });
    await eventually("access control is set up", () => agent.get("/v1/acl/tokens", root), 20_000);
  });
  after(() => agent?.kill());

  async function tokenFor(name: string, rules: string): Promise<string> {
    await agent.put("/v1/acl/policy", { Name: name, Rules: rules }, root);
    return (await agent.put("/v1/acl/token", { Policies: [{ Name: name }] }, root)).SecretID;
  }

  it("is used with the documented policies and no more", async () => {
    const sink = logSink();
    const [forInstances, forRouter] = [
      await tokenFor("instances", documentedPolicy("instances")),
      await tokenFor("router", documentedPolicy("router")),
    ];
    const o = { deployment: "default", log: sink.log };
    const config = (token: string) => configOf({ CONSUL_HTTP_ADDR: agent.address, CONSUL_HTTP_TOKEN: token });
    const registration = registerInConsul(config(forInstances), decode, serving, o);
    const watcher = consulWatcher(config(forRouter), o);
    const own = registerInConsul(
      config(forRouter),
      () => ({
        id: "router-1",
        role: "router",
        address: "127.0.0.1:1",
        grpcAddress: "127.0.0.1:2",
        meta: {},
        tags: [],
      }),
      serving,
      o,
    );
    let ids: string[] = [];
    const watch = watcher.watch((entries) => (ids = entries.map(({ instanceId }) => instanceId)));
    let texts: ReadonlyMap<string, string> | undefined;
    const settings = watcher.watchSettings("tandem/config/", (now) => (texts = now));
    await agent.put("/v1/kv/tandem/config/queue.limit", "9", root);
    await eventually("the router sees the instance", () => ids.join() === "decode-1");
    await eventually("it sees the settings", () => texts?.get("queue.limit") === "9");
    await eventually(
      "it is registered too",
      async () => (await agent.get("/v1/agent/service/router-1", root)) !== undefined,
    );
    assert.equal(watcher.health.up, true);
    for (const one of [watch, settings, own, registration]) await one[Symbol.asyncDispose]();
    assert.equal(await agent.get("/v1/agent/service/decode-1", root), undefined);
    watcher.close();
    assert.deepEqual(
      sink.lines.filter(({ level }) => level === "error"),
      [],
    );
  });

  it("names the policy that a registration lacks, and registers once the token may", async () => {
    const sink = logSink();
    const folder = mkdtempSync(join(tmpdir(), "tandem-token-"));
    const file = join(folder, "token");
    writeFileSync(file, `${await tokenFor("nothing", 'key "x" { policy = "read" }')}\n`);
    const config = configOf({ CONSUL_HTTP_ADDR: agent.address, CONSUL_HTTP_TOKEN_FILE: file });
    const registration = registerInConsul(config, decode, serving, { deployment: "default", log: sink.log });
    const [line] = await eventually(
      "it says so",
      () =>
        sink.events("Consul denies what this process needs; will keep retrying to register").length > 0 &&
        sink.events("Consul denies what this process needs; will keep retrying to register"),
    );
    assert.equal(line!["policy"], 'service "tandem-decode" { policy = "write" }');
    assert.match(
      String(line!["because"]),
      /lacks the policy service "tandem-decode" \{ policy = "write" \} \(docs\/consul.md/,
    );
    writeFileSync(file, await tokenFor("instances-2", documentedPolicy("instances")));
    await eventually(
      "it is registered",
      async () => (await agent.get("/v1/agent/service/decode-1", root)) !== undefined,
    );
    await registration[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true });
  });

  it("names the policy that a router's token lacks, where Consul would only leave things out", async () => {
    const sink = logSink();
    await agent.put("/v1/agent/service/register", { Name: "tandem-decode", ID: "other", Meta: {} }, root);
    const env = {
      CONSUL_HTTP_ADDR: agent.address,
      CONSUL_HTTP_TOKEN: await tokenFor("services-only", 'service_prefix "tandem" { policy = "read" }'),
    };
    const watcher = consulWatcher(configOf(env), { deployment: "default", log: sink.log });
    const watch = watcher.watch(() => {});
    const settings = watcher.watchSettings("tandem/config/", () => {});
    await eventually("both are named", () => {
      const said = sink
        .events("Consul denies what this process needs; the router goes on with the instances it knows")
        .map((line) => String(line["because"]))
        .join(" ");
      return (
        said.includes('node_prefix "" { policy = "read" }') &&
        said.includes('key_prefix "tandem/config/" { policy = "read" }')
      );
    });
    assert.equal(watcher.health.up, false);
    assert.match(watcher.health.error, /policy/);
    for (const one of [watch, settings]) await one[Symbol.asyncDispose]();
    watcher.close();
    await agent.put("/v1/agent/service/deregister/other", undefined, root);
  });

  it("reports that Consul doesn't know a token", async () => {
    const sink = logSink();
    const env = { CONSUL_HTTP_ADDR: agent.address, CONSUL_HTTP_TOKEN: "22222222-2222-2222-2222-222222222222" };
    const watcher = consulWatcher(configOf(env), { deployment: "default", log: sink.log });
    const watch = watcher.watch(() => {});
    await eventually("it says so", () => /doesn't know the token/.test(watcher.health.error));
    await watch[Symbol.asyncDispose]();
    watcher.close();
  });
});

describe("Consul over TLS", function () {
  this.timeout(90_000);
  it("works with Consul's own variables, our certificate and its own authority", async function () {
    const found = await consul();
    if ("missing" in found) skip(this, found.missing);
    const folder = mkdtempSync(join(tmpdir(), "tandem-tls-"));
    const tls = (...args: string[]) => promisify(execFile)(found.path, ["tls", ...args], { cwd: folder });
    await tls("ca", "create");
    await tls("cert", "create", "-server", "-dc", "dc1", "-additional-ipaddress", "127.0.0.1");
    await tls("cert", "create", "-client", "-dc", "dc1");
    const file = (name: string): string => join(folder, name);
    const https = await freePort();
    const agent = await startConsul({
      flags: ["-https-port", String(https)],
      config: {
        tls: {
          https: {
            ca_file: file("consul-agent-ca.pem"),
            cert_file: file("dc1-server-consul-0.pem"),
            key_file: file("dc1-server-consul-0-key.pem"),
            verify_incoming: true,
          },
        },
      },
    });
    try {
      const seen = async (env: Record<string, string>): Promise<{ up: boolean; error: string }> => {
        const watcher = consulWatcher(configOf(env), { deployment: "default", log: logSink().log });
        const watch = watcher.watch(() => {});
        const health = await eventually(
          "it was heard",
          () => (watcher.health.up || /certificate|alert|does not answer/.test(watcher.health.error)) && watcher.health,
          10_000,
        );
        await watch[Symbol.asyncDispose]();
        watcher.close();
        return health;
      };
      const client = {
        CONSUL_CLIENT_CERT: file("dc1-client-consul-0.pem"),
        CONSUL_CLIENT_KEY: file("dc1-client-consul-0-key.pem"),
      };
      const address = { CONSUL_HTTP_ADDR: `127.0.0.1:${https}`, CONSUL_HTTP_SSL: "true" };
      assert.equal((await seen({ ...address, ...client, CONSUL_CACERT: file("consul-agent-ca.pem") })).up, true);
      assert.equal((await seen({ ...address, ...client, CONSUL_HTTP_SSL_VERIFY: "false" })).up, true);
      const stranger = await seen({ ...address, ...client });
      assert.match(stranger.error, /certificate/);
      const nobody = await seen({ ...address, CONSUL_CACERT: file("consul-agent-ca.pem") });
      assert.equal(nobody.up, false);
    } finally {
      await agent.kill();
      rmSync(folder, { recursive: true, force: true });
    }
  });
});
