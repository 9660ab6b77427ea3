// P2P engines that were started outside Tandem: nothing restarts them, so none must be led into a wedge.
import assert from "node:assert/strict";
import { loadConfig } from "../../services/common/config.ts";
import { routerConfig } from "../../services/router/config.ts";
import { startRouter, type Router } from "../../services/router/main.ts";
import { simDecode, simPrefill } from "../instance/legs.ts";
import { silentLog } from "../support/log-sink.ts";
import { eventually, within } from "../support/waits.ts";

/** Far below every bound that a leg has by itself, for a busy machine. */
const LONG_MS = 15_000;

const ask = async (router: Router): Promise<string> => {
  const response = await fetch(`${router.restUrl}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "tandem-sim", prompt: "The quick brown fox", max_tokens: 5, stream: true }),
  });
  const text = await response.text();
  return response.status === 200 && text.endsWith("data: [DONE]\n\n") ? "ok" : `${response.status} ${text}`;
};
const eight = (router: Router): Promise<string[]> =>
  within(Promise.all(Array.from({ length: 8 }, () => ask(router))), "the end of all eight", LONG_MS);
const OK = Array.from({ length: 8 }, () => "ok");

describe("attached engines with P2P NCCL", function () {
  this.timeout(4 * LONG_MS);

  it("of which a decode engine dies cost no client its answer, and wedge no prefill engine", async () => {
    // Shipped defaults.
    await using router = await startRouter(
      loadConfig(routerConfig, { argv: ["--rest.listen", "127.0.0.1:0", "--grpc.listen", "127.0.0.1:0"], env: {} }),
      { log: silentLog },
    );
    const flags = { connector: "p2p-nccl", "registry.address": router.grpcAddress };
    const sim = { faults: ["upstream"] };
    await using p1 = await simPrefill("p2p-zmq", flags, sim);
    await using p2 = await simPrefill("p2p-zmq", flags, sim);
    await using d1 = await simDecode("p2p-zmq", flags, sim);
    await using _d2 = await simDecode("p2p-zmq", flags, sim);
    await eventually("all are paired", async () => {
      const metrics = await (await fetch(`${router.restUrl}/metrics`)).text();
      return metrics.match(/tandem_pool_instances\{role="\w+",state="serving"\} 2/g)?.length === 2;
    });
    assert.deepEqual(await eight(router), OK);
    d1.engine.kill();
    assert.deepEqual(await eight(router), OK);
    assert.deepEqual(await eight(router), OK);
    // Each prompt that a prefill engine computes for a dead decode engine would have wedged a real one for good.
    const failed = [p1, p2].map(({ engine }) => engine.state().outcomes.failed);
    assert.deepEqual(failed, [0, 0]);
  });
});
