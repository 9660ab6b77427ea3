// Decode that serves without prefill, over real gRPC: only where the connector allows it, and never in silence.
import assert from "node:assert/strict";
import { State } from "#gen/tandem/instance/v1/instance_pb.js";
import { deploy } from "../support/deployment.ts";
import { startDecode, startPrefill, twoTokens } from "../support/fake-instance.ts";
import { untilStanding } from "../support/pool-waits.ts";

const NIXL = { connector: "nixl" };
const SHORT = Buffer.from('{"prompt":"hi"}');
const LONG = Buffer.from(`{"prompt":"${"long ".repeat(200)}"}`);

describe("decode alone", () => {
  it("serves while no prefill instance is left, and reports the fallback", async () => {
    await using prefill = await startPrefill(NIXL, (leg) => leg.done({ ticket: "{}" }));
    await using decode = await startDecode(NIXL, twoTokens);
    await using tandem = await deploy([prefill, decode], { unpaired: true });
    const paired = tandem.start();
    await paired.ending;
    assert.deepEqual(paired.receipt.fallbacks, []);
    prefill.load({ state: State.DRAINING });
    await untilStanding(tandem.pool, "p1", "draining");
    const alone = tandem.start();
    await alone.ending;
    assert.equal((await decode.legs.all[1]!.started.promise).unpaired, true);
    assert.equal(decode.legs.all[1]!.reserve.prefillGrpcAddress, "");
    assert.deepEqual(alone.receipt.fallbacks, ["unpaired"]);
    assert.equal(alone.receipt.legs[0]!.prefillInstanceId, "");
    assert.match(await tandem.metrics.text(), /tandem_fallbacks_total\{reason="unpaired"\} 1/);
    await assert.rejects(tandem.start({ strict: true }).ending, {
      code: "no_instance",
      message: /its only prefill instance is out \(draining\)/,
    });
    prefill.load({ state: State.SERVING });
    await untilStanding(tandem.pool, "p1", "serves");
    const again = tandem.start();
    await again.ending;
    assert.deepEqual(again.receipt.fallbacks, []);
  });

  it("never serves if that would kill its engine", async () => {
    await using decode = await startDecode({ connector: "p2p-nccl" }, twoTokens);
    await using tandem = await deploy([decode], { unpaired: true, unpairedTokens: 1_000 });
    await assert.rejects(tandem.start().ending, { code: "no_instance", message: /no prefill instance is registered/ });
    assert.equal(decode.legs.all.length, 0);
  });

  it("serves short prompts if that is switched on, and pairs serve the long ones", async () => {
    await using prefill = await startPrefill(NIXL, (leg) => leg.done({ ticket: "{}" }));
    await using decode = await startDecode(NIXL, twoTokens);
    await using tandem = await deploy([prefill, decode], { unpairedTokens: 100 });
    const short = tandem.start({ body: SHORT });
    await short.ending;
    const long = tandem.start({ body: LONG });
    await long.ending;
    const strict = tandem.start({ body: SHORT, strict: true });
    await strict.ending;
    assert.deepEqual(
      [short, long, strict].map(({ receipt }) => receipt.fallbacks),
      [["unpaired_short"], [], []],
    );
    assert.equal(prefill.legs.all.length, 2);
  });

  it("goes to another decode instance when one is busy or fails, like any leg", async () => {
    await using one = await startDecode({ ...NIXL, instanceId: "d1" }, (leg) => leg.fail("instance_busy"));
    await using two = await startDecode({ ...NIXL, instanceId: "d2" }, (leg) => leg.fail("engine_failed"));
    await using three = await startDecode({ ...NIXL, instanceId: "d3" }, twoTokens);
    await using tandem = await deploy([one, two, three], { unpaired: true, limits: { retryLimit: 3 } });
    for (let count = 0; count < 3; count += 1) await tandem.start().ending;
    assert.equal(three.legs.all.length, 3);
  });
});
