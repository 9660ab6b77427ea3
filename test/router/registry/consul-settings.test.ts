// A router whose settings change in a real Consul's key-value store.
import assert from "node:assert/strict";
import { loadConfig } from "../../../services/common/config.ts";
import { routerConfig } from "../../../services/router/config.ts";
import { startRouter } from "../../../services/router/main.ts";
import { startConsul } from "../../support/consul.ts";
import { logSink } from "../../support/log-sink.ts";
import { skip } from "../../support/skip.ts";
import { consul } from "../../support/tools.ts";
import { eventually } from "../../support/waits.ts";

describe("a router on Consul", function () {
  this.timeout(30_000);
  before(async function () {
    this.timeout(1_800_000);
    const found = await consul();
    if ("missing" in found) skip(this, found.missing);
  });

  it("takes changed settings from its key-value store, and says which it refuses", async () => {
    await using agent = await startConsul();
    const argv = ["--rest.listen=127.0.0.1:0", "--grpc.listen=127.0.0.1:0", "--registry.kind=consul"];
    const config = loadConfig(routerConfig, { argv: [...argv, "--consul.address", agent.address], env: {} });
    await using router = await startRouter(config, { log: logSink().log });
    const getConfig = async (): Promise<{ settings: { key: string }[]; registry: { settingsError?: string } }> => {
      const url = `${router.restUrl}/tandem.router.v1.RouterService/GetConfig`;
      const init = { method: "POST", headers: { "content-type": "application/json" }, body: "{}" };
      return (await (await fetch(url, init)).json()) as Awaited<ReturnType<typeof getConfig>>;
    };
    await agent.put("/v1/kv/tandem/config/default/queue.limit", "9");
    await eventually("the change", () => config.queue.current.limit === 9);
    assert.deepEqual(
      (await getConfig()).settings.find(({ key }) => key === "queue.limit"),
      { key: "queue.limit", value: "9 requests", origin: "consul tandem/config/default/queue.limit" },
    );
    await agent.put("/v1/kv/tandem/config/default/rest.listen", "127.0.0.1:1");
    const refusal = await eventually("the refusal", async () => (await getConfig()).registry.settingsError);
    assert.match(refusal, /rest\.listen can't change while the process runs/);
    assert.equal(config.queue.current.limit, 9, "the change before stays in force");
  });
});
