// Two deployments whose processes all use one Consul agent.
import assert from "node:assert/strict";
import { startConsul } from "../support/consul.ts";
import { eligible, startProcess, startRouterProcess, type TestProcess, type TestRouter } from "../support/processes.ts";
import { skip } from "../support/skip.ts";
import { consul } from "../support/tools.ts";
import { eventually } from "../support/waits.ts";

interface Deployment extends AsyncDisposable {
  readonly router: TestRouter;
  readonly instances: readonly TestProcess[];
}

async function deploy(name: string, address: string, kvPort: number): Promise<Deployment> {
  const flags = ["--name", name, "--registry.kind", "consul", "--consul.address", address];
  const router = await startRouterProcess(flags);
  const sim = ["--listen", "127.0.0.1:0", "--engine", "sim", "--model", `model-${name}`];
  const instances = (["prefill", "decode"] as const).map((role, index) =>
    startProcess(role, [...flags, ...sim, "--kv.listen", String(kvPort + index)]),
  );
  return {
    router,
    instances,
    async [Symbol.asyncDispose]() {
      await Promise.all([router, ...instances].map((one) => one[Symbol.asyncDispose]()));
    },
  };
}

async function modelsOf({ url }: TestRouter): Promise<string[]> {
  const { data } = (await (await fetch(`${url}/v1/models`)).json()) as { data: { id: string }[] };
  return data.map(({ id }) => id);
}

describe("two deployments on one Consul agent", function () {
  this.timeout(120_000);

  it("serve their own model, list their own instances, and follow their own settings", async function () {
    const found = await consul();
    if ("missing" in found) skip(this, found.missing);
    await using agent = await startConsul();
    await using blue = await deploy("blue", agent.address, 31_101);
    await using green = await deploy("green", agent.address, 31_201);
    for (const { router, instances } of [blue, green])
      for (const instance of instances) await eligible(router, instance);
    assert.equal((await agent.get("/v1/catalog/service/tandem-decode")).length, 2, "Consul has both");
    assert.deepEqual([await modelsOf(blue.router), await modelsOf(green.router)], [["model-blue"], ["model-green"]]);
    for (const { router, instances } of [blue, green]) {
      const listed = (await router.call("ListInstances")).instances.map((one: any) => one.info.pid);
      assert.deepEqual(listed.toSorted(), instances.map(({ pid }) => pid).toSorted());
    }
    await agent.put("/v1/kv/tandem/config/blue/queue.limit", "7");
    await agent.put("/v1/kv/tandem/config/green/queue.limit", "8");
    const limitOf = async ({ router }: Deployment): Promise<string> => {
      const { settings } = await router.call("GetConfig");
      const { value, origin } = settings.find((one: any) => one.key === "queue.limit");
      return `${value} from ${origin}`;
    };
    for (const [deployment, name, limit] of [
      [blue, "blue", 7],
      [green, "green", 8],
    ] as const) {
      const taken = `${limit} requests from consul tandem/config/${name}/queue.limit`;
      await eventually(taken, async () => (await limitOf(deployment)) === taken);
    }
    await agent.put("/v1/kv/tandem/config/blue/queue.limit", "banana");
    const diagnoses = async ({ router }: Deployment): Promise<any[]> =>
      (await router.call("Diagnose", { withoutProbes: true })).diagnoses.map((one: any) => one.finding);
    const refused = await eventually("the doctor knows of the bad one", async () =>
      (await diagnoses(blue)).find(({ check }) => check === "settings"),
    );
    assert.match(refused.message, /queue\.limit: expected an integer .* got "banana"/);
    assert.ok(!(await diagnoses(green)).some(({ check }) => check === "settings"));
    const tagged = await agent.get("/v1/catalog/service/tandem-router?tag=green");
    assert.deepEqual(
      tagged.map((one: any) => one.ServiceMeta.rest_address),
      [green.router.url.replace("http://", "")],
      "Consul's DNS knows the router of one deployment by its name",
    );
  });
});
