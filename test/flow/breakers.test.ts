// Whole requests over real instances and their real engines (sims) that are told to fail: users are led around what is
// broken, and probes, real requests through both legs, bring it back.
import assert from "node:assert/strict";
import { loadConfig } from "../../services/common/config.ts";
import { routerConfig } from "../../services/router/config.ts";
import { startRouter, type Router } from "../../services/router/main.ts";
import { simDecode, simPrefill, type SimInstance } from "../instance/legs.ts";
import { logSink } from "../support/log-sink.ts";
import { eventually, within } from "../support/waits.ts";

/** Far below every bound that a leg has by itself, for a busy machine. */
const LONG_MS = 15_000;

const start = (...argv: string[]): Promise<Router> =>
  startRouter(
    loadConfig(routerConfig, {
      argv: ["--rest.listen", "127.0.0.1:0", "--grpc.listen", "127.0.0.1:0", ...argv],
      env: {},
    }),
    { log: logSink().log, constants: { retriesPerS: 100 } },
  );

const ask = (router: Router): Promise<Response> =>
  fetch(`${router.restUrl}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "tandem-sim", prompt: "The quick brown fox", max_tokens: 5, stream: true }),
  });

const fault = ({ engine }: SimInstance, text: string): void => engine.setFault(text);
const repair = ({ engine }: SimInstance): void => engine.clearFaults();
const metric = async (router: Router, name: RegExp): Promise<number> =>
  Number(name.exec(await (await fetch(`${router.restUrl}/metrics`)).text())?.[1] ?? 0);
const ready = (router: Router): Promise<unknown> =>
  eventually("ready", async () => (await fetch(`${router.restUrl}/readyz`)).ok, LONG_MS);

for (const connector of ["p2p-zmq", "nixl"] as const) {
  describe(`engines that fail (${connector})`, function () {
    this.timeout(4 * LONG_MS);

    it("all at once, are back in service after their repair, by a probe", async () => {
      await using router = await start("--retry.limit", "0", "--no-fallback.unpaired");
      const registry = { "registry.address": router.grpcAddress };
      await using prefill = await simPrefill(connector, registry);
      await using _decode = await simDecode(connector, registry);
      await ready(router);
      assert.equal((await ask(router)).status, 200);
      fault(prefill, "refuse:status=500");
      await eventually("the breaker is open", async () => {
        assert.equal((await ask(router)).status, 502);
        return (await metric(router, /tandem_breakers_open\{of="prefill"\} (\d+)/)) === 1;
      });
      // The last of a side goes on: its own error says more than ours.
      const out = await ask(router);
      assert.deepEqual([out.status, out.headers.get("x-tandem-degraded")], [502, "last_resort"]);
      await eventually(
        "a probe that fails",
        async () => (await metric(router, /tandem_probes_total\{outcome="refused"\} (\d+)/)) > 0,
      );
      repair(prefill);
      await ready(router);
      assert.equal((await ask(router)).status, 200);
      await eventually(
        "a probe that succeeds",
        async () => (await metric(router, /tandem_breakers_open\{of="prefill"\} (\d+)/)) === 0,
        LONG_MS,
      );
      assert.ok((await metric(router, /tandem_probes_total\{outcome="succeeded"\} (\d+)/)) >= 1);
    });

    it("by standing still, cost eight clients a second try and the next eight nothing", async () => {
      await using router = await start("--transfer.timeout_ms", "1500");
      const registry = { "registry.address": router.grpcAddress };
      await using _prefill = await simPrefill(connector, registry);
      await using mute = await simDecode(connector, registry);
      await using _good = await simDecode(connector, registry);
      await ready(router);
      await eventually(
        "both are known",
        async () => (await metric(router, /tandem_pool_instances\{role="decode",state="serving"\} (\d+)/)) === 2,
      );
      const eight = async (): Promise<Response[]> => {
        const answers = await Promise.all(Array.from({ length: 8 }, () => ask(router)));
        for (const answer of answers) assert.match(await answer.clone().text(), /\[DONE\]/);
        return answers;
      };
      // KV has moved to both: the first transfer of two engines is given more time.
      await within(eight(), "eight answers while all is well", LONG_MS);
      fault(mute, "hang");
      const first = await within(eight(), "the first eight", LONG_MS);
      assert.deepEqual(new Set(first.map(({ status }) => status)), new Set([200]));
      assert.ok(
        first.some((answer) => answer.headers.get("x-tandem-degraded")?.includes("retry:transfer:leg_stalled")),
      );
      const next = await within(eight(), "the next eight", LONG_MS);
      assert.ok(
        next.every(({ headers }) => !headers.get("x-tandem-degraded")?.includes("retry")),
        "nobody is sent there again",
      );
    });
  });
}
