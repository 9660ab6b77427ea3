// A router over instances whose engines end: as long as an instance says when its next engine will work, requests wait
// for it, and one that can't is told the time. Never the words of one instance.
import assert from "node:assert/strict";
import { State } from "#gen/tandem/instance/v1/instance_pb.js";
import { loadConfig } from "../../services/common/config.ts";
import { routerConfig } from "../../services/router/config.ts";
import { startRouter, type Router } from "../../services/router/main.ts";
import {
  startDecode,
  startPrefill,
  twoTokens,
  type FakeDecode,
  type FakeInstance,
  type PrefillLeg,
} from "../router/support/fake-instance.ts";
import { logSink } from "../support/log-sink.ts";
import { eventually } from "../support/waits.ts";

async function start(instances: readonly FakeInstance[], ...flags: string[]): Promise<Router> {
  const addresses = instances.map(({ info }) => `--instances=${info.grpcAddress}`);
  const listen = ["--rest.listen=127.0.0.1:0", "--grpc.listen=127.0.0.1:0", "--registry.kind=static"];
  const config = loadConfig(routerConfig, { argv: [...listen, ...addresses, ...flags], env: {} });
  const router = await startRouter(config, { log: logSink().log, constants: { firstPrefillMs: 0 } });
  await eventually("all serve", async () => (await states(router)) === instances.length);
  return router;
}

/** Instances that the router gives legs. */
async function states(router: Router): Promise<number> {
  const text = await (await fetch(`${router.restUrl}/metrics`)).text();
  const serving = [...text.matchAll(/^tandem_pool_instances\{role="\w+",state="serving"\} (\d+)/gm)];
  return serving.reduce((sum, [, count]) => sum + Number(count), 0);
}

const ask = (router: Router, headers: Record<string, string> = {}): Promise<Response> =>
  fetch(`${router.restUrl}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify({ model: "tiny", prompt: "hi", stream: true }),
  });

const done = (leg: PrefillLeg): void => leg.done();
const died = (instance: FakeInstance, readyInMs?: number): void =>
  instance.load({
    state: State.STARTING,
    reason: "the engine exited",
    ...(readyInMs === undefined ? {} : { readyInMs }),
  });

describe("a request while its only decode engine restarts", () => {
  it("waits for the engine, whether it comes then or was under way", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode: FakeDecode = await startDecode({ slotLimit: 8 }, (leg) => {
      if (decode.legs.all.length > 2) return twoTokens(leg);
      // What an instance answers whose engine has just ended, and what it answers until its router has heard of that.
      leg.fail(decode.legs.all.length === 1 ? "engine_failed" : "instance_unavailable");
      if (decode.legs.all.length === 2) died(decode, 20_000);
    });
    await using router = await start([prefill, decode]);
    const underWay = ask(router);
    await eventually("the router knows", async () => (await states(router)) === 1);
    const later = ask(router);
    await eventually("it waits", async () => /^tandem_requests_waiting 2$/m.test(await metricsOf(router)));
    decode.load({ state: State.SERVING, reason: "", readyInMs: undefined });
    for (const answer of await Promise.all([underWay, later])) {
      assert.equal(answer.status, 200);
      assert.match(await answer.text(), /\[DONE\]/);
    }
    assert.equal(decode.legs.all.length, 4);
  });

  it("gets 503 with the time at which to come back, if it can't wait that long", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode({ slotLimit: 8 }, twoTokens);
    await using router = await start([prefill, decode]);
    died(decode, 90_000);
    await eventually("the router knows", async () => (await states(router)) === 1);
    const refused = await ask(router);
    assert.equal(refused.status, 503);
    assert.ok(Number(refused.headers.get("retry-after")) > 80, refused.headers.get("retry-after")!);
    assert.match(
      await refused.text(),
      /The model `tiny` is loading: its only decode instance is out \(starting\), ready in about \d\d s\./,
    );
  });
});

describe("requests while all prefill engines have just ended", () => {
  it("spend no retries on them: decode serves alone at once (nixl)", async () => {
    const nixl = { connector: "nixl", kvAddress: "", slotLimit: 8 };
    const refuse = (leg: PrefillLeg): void => leg.fail("instance_unavailable");
    await using p1 = await startPrefill({ ...nixl, instanceId: "p1" }, refuse);
    await using p2 = await startPrefill({ ...nixl, instanceId: "p2" }, refuse);
    await using p3 = await startPrefill({ ...nixl, instanceId: "p3" }, refuse);
    await using p4 = await startPrefill({ ...nixl, instanceId: "p4" }, refuse);
    await using decode = await startDecode({ ...nixl, instanceId: "d1" }, twoTokens);
    await using router = await start([p1, p2, p3, p4, decode]);
    const answers = await Promise.all(Array.from({ length: 8 }, () => ask(router)));
    for (const answer of answers) {
      assert.equal(answer.status, 200, await answer.text());
      assert.match(answer.headers.get("x-tandem-degraded")!, /unpaired/);
    }
  });
});

async function metricsOf(router: Router): Promise<string> {
  return (await fetch(`${router.restUrl}/metrics`)).text();
}
