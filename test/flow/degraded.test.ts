// A router and instances over their real engines (sims): what happens to requests while prefill is gone, and that the
// client, the receipt and the metrics are told.
import assert from "node:assert/strict";
import { loadConfig } from "../../services/common/config.ts";
import { routerConfig } from "../../services/router/config.ts";
import { startRouter, type Router, type RouterOptions } from "../../services/router/main.ts";
import { simDecode, simPrefill } from "../instance/legs.ts";
import { logSink } from "../support/log-sink.ts";
import { eventually } from "../support/waits.ts";

const start = (constants: RouterOptions["constants"] = {}): Promise<Router> =>
  startRouter(
    loadConfig(routerConfig, { argv: ["--rest.listen", "127.0.0.1:0", "--grpc.listen", "127.0.0.1:0"], env: {} }),
    { log: logSink().log, constants },
  );

const ask = (
  router: Router,
  fields: Record<string, unknown> = {},
  headers: Record<string, string> = {},
): Promise<Response> =>
  fetch(`${router.restUrl}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify({ model: "tandem-sim", prompt: "The quick brown fox", max_tokens: 5, ...fields }),
  });

const ready = (router: Router, wanted: boolean): Promise<unknown> =>
  eventually(`ready: ${wanted}`, async () => (await fetch(`${router.restUrl}/readyz`)).ok === wanted);

describe("a model without prefill", () => {
  it("is served by decode alone if the connector allows it (nixl), and the answer reports it", async () => {
    await using router = await start({ firstPrefillMs: 0 });
    await using _decode = await simDecode("nixl", { "registry.address": router.grpcAddress });
    await ready(router, true);
    const alone = await ask(router);
    assert.equal(alone.status, 200, await alone.clone().text());
    assert.equal(alone.headers.get("x-tandem-degraded"), "unpaired");
    const { usage } = (await alone.json()) as { usage: { completion_tokens: number } };
    assert.equal(usage.completion_tokens, 5);
    const streamed = await (await ask(router, { stream: true })).text();
    assert.match(streamed, /data: \[DONE\]\n\n$/);
    const strict = await ask(router, {}, { "x-tandem-strict": "true" });
    assert.equal(strict.status, 503);
    assert.match(await strict.text(), /no prefill instance is registered/);
    assert.match(
      await (await fetch(`${router.restUrl}/metrics`)).text(),
      /tandem_fallbacks_total\{reason="unpaired"\} 2/,
    );
    {
      await using _prefill = await simPrefill("nixl", { "registry.address": router.grpcAddress });
      const paired = await eventually("a pair", async () => {
        const response = await ask(router);
        return response.headers.get("x-tandem-degraded") === null ? response : undefined;
      });
      assert.equal(paired.status, 200);
    }
    await eventually(
      "decode to serve alone again",
      async () => (await ask(router)).headers.get("x-tandem-degraded") === "unpaired",
    );
  });

  it("waits for its first prefill instance, which a router that has just started may not have heard of", async () => {
    await using router = await start({ firstPrefillMs: 3_600_000 });
    await using _decode = await simDecode("nixl", { "registry.address": router.grpcAddress });
    const readyz = async (): Promise<string> => (await fetch(`${router.restUrl}/readyz`)).text();
    await eventually("decode is known", async () => /no prefill instance is registered/.test(await readyz()));
    await eventually("decode takes legs", async () => !/decode/.test(await readyz()));
    const early = await ask(router);
    assert.equal(early.status, 503);
    assert.match(await early.text(), /no prefill instance is registered/);
    {
      await using _prefill = await simPrefill("nixl", { "registry.address": router.grpcAddress });
      await ready(router, true);
      assert.equal((await ask(router)).headers.get("x-tandem-degraded"), null);
    }
    await eventually(
      "decode to serve alone",
      async () => (await ask(router)).headers.get("x-tandem-degraded") === "unpaired",
    );
  });

  it("is refused with the missing role if decode engines serve no unpaired request (p2p)", async () => {
    await using router = await start();
    await using decode = await simDecode("p2p-zmq", { "registry.address": router.grpcAddress });
    await eventually(
      "it is known",
      async () => (await ask(router)).status === 503 && !(await (await ask(router)).text()).includes("No model"),
    );
    const refused = await ask(router);
    assert.equal(refused.status, 503);
    assert.equal(refused.headers.get("retry-after"), "1");
    assert.match(await refused.text(), /no prefill instance is registered/);
    assert.equal(decode.instance.load().running, 0);
  });
});
