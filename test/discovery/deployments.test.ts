// Two deployments on one Consul agent: neither sees anything of the other. Once against a scripted agent, and once against
// a real one where there is one.
import assert from "node:assert/strict";
import type { ServerResponse } from "node:http";
import { text as bodyOf } from "node:stream/consumers";
import { create } from "@bufbuild/protobuf";
import { InfoSchema, Role, type Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { ConfigError, defineConfig, loadConfig, section } from "../../services/common/config.ts";
import { deploymentName } from "../../services/common/deployment.ts";
import { consulWatcher, instanceRecord, registerInConsul } from "../../services/discovery/consul.ts";
import { consulCheckSettings, consulSettings } from "../../services/discovery/consul-settings.ts";
import { startConsul } from "../support/consul.ts";
import { silentLog } from "../support/log-sink.ts";
import { json, scriptedConsul, type Answer, type Asked } from "../support/scripted-consul.ts";
import { skip } from "../support/skip.ts";
import { consul } from "../support/tools.ts";
import { eventually } from "../support/waits.ts";

const definition = defineConfig("test", {
  name: deploymentName,
  consul: section("Consul", { ...consulSettings, ...consulCheckSettings }),
});
const configOf = (...argv: string[]) => loadConfig(definition, { argv, env: {} });

/** Keeps services, and answers blocking queries that filter by the deployment. */
function smallAgent(): Answer {
  const services = new Map<string, any>();
  const waiting = new Set<{ response: ServerResponse; asked: Asked }>();
  let index = 1;
  const changed = (): void => {
    index += 1;
    for (const { response, asked } of waiting) list(response, asked);
    waiting.clear();
  };
  const list: Answer = (response, asked) => {
    const wanted = /^Service\.Meta\.deployment == "(.*)"$/.exec(asked.query.get("filter") ?? "");
    const found = [...services.values()].filter(
      ({ Name, Meta }) => asked.path.endsWith(`/${Name}`) && (wanted === null || Meta.deployment === wanted[1]),
    );
    const entries = found.map((service) => ({ Service: { ...service, ModifyIndex: index }, Checks: [] }));
    json(index, entries)(response, asked);
  };
  return async (response, asked) => {
    const id = asked.path.split("/").at(-1)!;
    if (asked.path.endsWith("/service/register")) {
      const service = JSON.parse(await bodyOf(asked.request));
      services.set(service.ID, service);
      changed();
    } else if (asked.path.includes("/deregister/")) {
      services.delete(id);
      changed();
    }
    if (asked.query.get("index") === String(index) || asked.query.has("hash")) waiting.add({ response, asked });
    else if (asked.path.startsWith("/v1/health/")) list(response, asked);
    else json(index, {}, { "x-consul-contenthash": "h" })(response, asked);
  };
}

interface Agent extends AsyncDisposable {
  readonly address: string;
}

const AGENTS: Record<string, () => Promise<Agent | { missing: string }>> = {
  async scripted() {
    const { address, close } = await scriptedConsul([smallAgent()]);
    return { address, [Symbol.asyncDispose]: async () => close() };
  },
  async real() {
    const found = await consul();
    return "missing" in found ? found : startConsul();
  },
};

const instance = (deployment: string, role: "prefill" | "decode", port: number): Info =>
  create(InfoSchema, {
    instanceId: `${deployment}-${role}`,
    role: role === "prefill" ? Role.PREFILL : Role.DECODE,
    model: "m",
    connector: "nixl",
    grpcAddress: `127.0.0.1:${port}`,
    startedUnixMs: 1_000n,
  });

/** What one deployment has in a Consul: two instances, and a router that watches. */
async function deploy(address: string, name: string, port: number) {
  const config = configOf("--consul.address", address, "--name", name);
  const o = { deployment: config.name, log: silentLog };
  const watcher = consulWatcher(config.consul, o);
  const records = [instance(name, "prefill", port), instance(name, "decode", port + 1)].map(instanceRecord);
  const report = () => ({ serving: true, text: "serving" });
  const registrations = records.map((record) => registerInConsul(config.consul, () => record, report, o));
  /** Every id that was ever listed. */
  const seen = new Set<string>();
  let now: readonly string[] = [];
  const watch = watcher.watch((entries, objections = new Map()) => {
    now = entries.map(({ instanceId }) => instanceId).filter((id) => objections.get(id)?.kind !== "missing");
    for (const id of now) seen.add(id);
  });
  return {
    seen,
    now: () => now,
    leave: () => Promise.all(registrations.map((registration) => registration[Symbol.asyncDispose]())),
    async [Symbol.asyncDispose]() {
      await watch[Symbol.asyncDispose]();
      for (const one of registrations) await one[Symbol.asyncDispose]();
      watcher.close();
    },
  };
}

for (const [kind, start] of Object.entries(AGENTS)) {
  describe(`two deployments on one ${kind} Consul agent`, function () {
    this.timeout(60_000);

    it("list their own instances and no others, while the other comes and goes", async function () {
      const agent = await start();
      if ("missing" in agent) skip(this, agent.missing);
      await using _ = agent;
      await using blue = await deploy(agent.address, "blue", 11);
      await using green = await deploy(agent.address, "green", 21);
      await eventually("each sees its own", () => blue.now().length === 2 && green.now().length === 2);
      await blue.leave();
      await eventually("blue has left", () => blue.now().length === 0);
      await using again = await deploy(agent.address, "blue", 31);
      await eventually("blue is back", () => blue.now().length === 2 && again.now().length === 2);
      assert.deepEqual([...green.seen].sort(), ["green-decode", "green-prefill"]);
      assert.deepEqual([...blue.seen].sort(), ["blue-decode", "blue-prefill"]);
      assert.equal(green.now().length, 2);
    });
  });
}

describe("the name of a deployment", () => {
  it("is `default`, or a label of letters, digits and hyphens", () => {
    assert.equal(configOf().name, "default");
    assert.equal(configOf("--name", "team-A1").name, "team-A1");
    assert.equal(loadConfig(definition, { argv: [], env: { TANDEM_DEPLOYMENT_NAME: "blue" } }).name, "blue");
    for (const bad of ["", "a b", 'a"', "-a", "a/b", "a".repeat(64)])
      assert.throws(() => configOf(`--name=${bad}`), ConfigError, bad);
  });
});
