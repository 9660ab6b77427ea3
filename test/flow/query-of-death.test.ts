// One body that makes engines fail, beside users whose bodies don't: it costs them nothing.
import assert from "node:assert/strict";
import { loadConfig } from "../../services/common/config.ts";
import { routerConfig } from "../../services/router/config.ts";
import { startRouter, type Router } from "../../services/router/main.ts";
import { simDecode, simPrefill } from "../instance/legs.ts";
import { logSink } from "../support/log-sink.ts";
import { eventually } from "../support/waits.ts";

const start = (): Promise<Router> =>
  startRouter(
    loadConfig(routerConfig, { argv: ["--rest.listen", "127.0.0.1:0", "--grpc.listen", "127.0.0.1:0"], env: {} }),
    { log: logSink().log },
  );

const ask = async (router: Router, prompt: string, fields: Record<string, unknown> = {}): Promise<Response> =>
  fetch(`${router.restUrl}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "tandem-sim", prompt, max_tokens: 3, ...fields }),
  });

const POISON = "a poison pill";

/** Legs that failed, by the router's count, and the breakers that are open. */
async function harm(router: Router, leg: "prefill" | "decode"): Promise<{ failed: number; breakersOpen: number }> {
  const text = await (await fetch(`${router.restUrl}/metrics`)).text();
  const sum = (name: RegExp): number => [...text.matchAll(name)].reduce((all, [, value]) => all + Number(value), 0);
  return {
    failed: sum(
      new RegExp(`^tandem_legs_total\\{leg="${leg}",outcome="(?:engine|kv_transfer)_failed"\\} (\\d+)`, "gm"),
    ),
    breakersOpen: sum(/^tandem_breakers_open\{.*\} (\d+)/gm),
  };
}

describe("a query of death", () => {
  for (const [side, connector] of [
    ["prefill", "p2p-zmq"],
    ["decode", "nixl"],
  ] as const) {
    it(`that ${side} engines answer with 500 (${connector}) gets their words, runs on two pairs, and is then held`, async () => {
      await using router = await start();
      const registry = { "registry.address": router.grpcAddress };
      const faults = { faults: ["poison"] };
      const ill = (role: typeof side): object => (role === side ? faults : {});
      await using _p1 = await simPrefill(connector, registry, ill("prefill"));
      await using _p2 = await simPrefill(connector, registry, ill("prefill"));
      await using _d1 = await simDecode(connector, registry, ill("decode"));
      await using _d2 = await simDecode(connector, registry, ill("decode"));
      await using _d3 = await simDecode(connector, registry, ill("decode"));
      await eventually("all serve", async () => {
        const text = await (await fetch(`${router.restUrl}/metrics`)).text();
        return /role="prefill",state="serving"\} 2/.test(text) && /role="decode",state="serving"\} 3/.test(text);
      });
      let others = 0;
      let stop = false;
      const crowd = Array.from({ length: 4 }, async (_, who) => {
        for (let count = 0; !stop; count += 1) {
          const answer = await ask(router, `user ${who} asks for the ${"very ".repeat(count % 7)}same thing`);
          assert.equal(answer.status, 200, await answer.text());
          others += 1;
        }
      });
      await eventually("the others are served everywhere", () => others >= 24);

      const poisoned = await ask(router, POISON);
      assert.equal(poisoned.status, 500);
      const { error } = (await poisoned.json()) as { error: { message: string; type: string; code: number } };
      assert.deepEqual([error.message, error.type, error.code], ["a template error", "InternalServerError", 500]);
      assert.deepEqual(await harm(router, side), { failed: 2, breakersOpen: 0 });

      for (const form of [{}, { stream: true }]) {
        const again = await ask(router, POISON, form);
        assert.equal(again.status, 500);
        assert.equal(again.headers.get("x-tandem-degraded"), "quarantined");
        assert.match(
          await again.text(),
          /a template error \(The request was not run: the same body made 2 \w+ engines fail, and was quarantined \d+ s ago, and for another \d+ s\.\)/,
        );
      }
      assert.deepEqual(await harm(router, side), { failed: 2, breakersOpen: 0 }, "it reached an engine again");
      const served = others;
      await eventually("the others go on", () => others > served + 4);
      stop = true;
      await Promise.all(crowd);
      const metrics = await (await fetch(`${router.restUrl}/metrics`)).text();
      const shown = ["tandem_quarantined_bodies 1", 'tandem_refusals_total{because="quarantined"} 2'];
      for (const line of shown) assert.ok(metrics.includes(`${line}\n`), line);
    });
  }

  it("is none if its side fails every body: nothing is held, and its own answer is not shown", async () => {
    await using router = await start();
    const registry = { "registry.address": router.grpcAddress };
    await using p1 = await simPrefill("p2p-zmq", registry);
    await using p2 = await simPrefill("p2p-zmq", registry);
    await using _d1 = await simDecode("p2p-zmq", registry);
    await eventually("it serves", async () => (await ask(router, "a")).status === 200);
    for (const prompt of ["bb", "ccc", "dddd", "eeeee"]) assert.equal((await ask(router, prompt)).status, 200);
    for (const { engine } of [p1, p2])
      await fetch(`${engine.url}/sim/fault`, { method: "POST", body: JSON.stringify("refuse:status=500") });
    await ask(router, "first");
    assert.notEqual((await ask(router, "second")).status, 500);
    for (const { engine } of [p1, p2]) await fetch(`${engine.url}/sim/fault`, { method: "DELETE" });
    await eventually("the first body is served", async () => (await ask(router, "first")).status === 200);
  });
});
