// Two routers with a registry each, and instances that register with both.
import assert from "node:assert/strict";
import { loadConfig } from "../../services/common/config.ts";
import { routerConfig } from "../../services/router/config.ts";
import { startRouter, type Router } from "../../services/router/main.ts";
import { simDecode, simPrefill } from "../instance/legs.ts";
import { silentLog } from "../support/log-sink.ts";
import { eventually, freePort } from "../support/waits.ts";

const start = (grpc: string): Promise<Router> =>
  startRouter(loadConfig(routerConfig, { argv: ["--rest.listen", "127.0.0.1:0", "--grpc.listen", grpc], env: {} }), {
    log: silentLog,
  });

const ask = (router: Router): Promise<Response> =>
  fetch(`${router.restUrl}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt: "The quick brown fox", max_tokens: 5 }),
  });

const untilReady = (router: Router): Promise<unknown> =>
  eventually("it is ready", async () => (await fetch(`${router.restUrl}/readyz`)).ok);

describe("two routers before the same instances", () => {
  it("both serve, each goes on without the other, and one that is back finds the instances again", async () => {
    const [here, there] = [`127.0.0.1:${await freePort()}`, `127.0.0.1:${await freePort()}`];
    const registry = { "registry.address": `${here},${there}` };
    // The second is away at first.
    await using first = await start(here);
    await using _prefill = await simPrefill("p2p-zmq", registry);
    await using _decode = await simDecode("p2p-zmq", registry);
    await untilReady(first);
    assert.equal((await ask(first)).status, 200);
    {
      await using second = await start(there);
      await untilReady(second);
      const answers = await Promise.all(
        [first, second, first, second].map(async (router) => (await ask(router)).status),
      );
      assert.deepEqual(answers, [200, 200, 200, 200]);
    }
    assert.equal((await ask(first)).status, 200);
    await using again = await start(there);
    await untilReady(again);
    assert.equal((await ask(again)).status, 200);
  });
});
