// `tandem up --consul` as a user runs it.
import assert from "node:assert/strict";
import { startConsul, type TestConsul } from "../support/consul.ts";
import { skip } from "../support/skip.ts";
import { startTandem } from "../support/tandem.ts";
import { consul } from "../support/tools.ts";
import { eventually, freePort } from "../support/waits.ts";

describe("tandem up on Consul", function () {
  this.timeout(120_000);
  let agent: TestConsul;
  before(async function () {
    const found = await consul();
    if ("missing" in found) skip(this, found.missing);
    agent = await startConsul();
  });
  after(() => agent?.kill());

  it("registers all its processes, under the name of their deployment, in the agent that runs, says where its UI is, and takes them out at the end", async () => {
    const tandem = await startTandem(["--consul", "--engine", "sim", "--decode", "2"], {
      CONSUL_HTTP_ADDR: agent.address,
      TANDEM_DEPLOYMENT_NAME: "blue",
    });
    const passing = async (): Promise<string> =>
      (
        await Promise.all(
          ["router", "prefill", "decode"].map(
            async (role) => (await agent.get(`/v1/health/service/tandem-${role}?passing=true&tag=blue`)).length,
          ),
        )
      ).join();
    try {
      await eventually("all pass", async () => (await passing()) === "1,1,2", 20_000);
      await eventually("the UI is named", () => tandem.output().includes(`runs already  http://${agent.address}/ui/`));
    } finally {
      await tandem[Symbol.asyncDispose]();
    }
    assert.deepEqual(Object.keys(await agent.get("/v1/agent/services")), []);
  });

  it("mentions an agent that it is not told to use, and registers nothing there", async () => {
    const tandem = await startTandem(["--engine", "sim"], { CONSUL_HTTP_ADDR: agent.address });
    try {
      await eventually(
        "it is mentioned",
        () =>
          tandem.output().includes(`A Consul agent answers at ${agent.address}. To register there: tandem up --consul`),
        20_000,
      );
      assert.deepEqual(Object.keys(await agent.get("/v1/agent/services")), []);
    } finally {
      await tandem[Symbol.asyncDispose]();
    }
  });

  it("ends with a sentence where no agent answers at the address that it was given", async () => {
    const address = `127.0.0.1:${await freePort()}`;
    await assert.rejects(
      startTandem(["--consul", "--engine", "sim"], { CONSUL_HTTP_ADDR: address }),
      (error: Error) => {
        assert.match(error.message, new RegExp(`--consul: no Consul agent answers at CONSUL_HTTP_ADDR=${address}`));
        assert.doesNotMatch(error.message, / at .*\.js:\d+/, "a stack is no help");
        return true;
      },
    );
  });
});
