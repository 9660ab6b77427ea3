// Canaries through real instances over sims: a pair that moves KV, one that decodes from KV of other weights, one that fails.
import assert from "node:assert/strict";
import { PrefillService } from "#gen/tandem/prefill/v1/prefill_pb.js";
import type { RpcChannel } from "../../../services/rpc/client.ts";
import { canaryFault, sendPairCanary } from "../../../services/router/probe/pair-canary.ts";
import { simDecode, simPrefill, type SimInstance } from "../../instance/legs.ts";

const side = ({ instance, channel }: SimInstance) => ({ info: instance.info(), control: channel });

describe("a canary through a pair", function () {
  this.timeout(20_000);
  for (const connector of ["p2p-zmq", "nixl"] as const) {
    it(`finds that decode answers as prefill would alone (${connector})`, async () => {
      await using prefill = await simPrefill(connector);
      await using decode = await simDecode(connector);
      const result = await sendPairCanary(side(prefill), side(decode), { timeoutMs: 10_000 });
      assert.equal(result.kind, "right", JSON.stringify(result));
      assert.equal(canaryFault(result), undefined);
      assert.equal(decode.instance.load().kvOrphans, 0);
    });
  }

  it("finds a decode engine that answers 200 from another KV than it was sent", async () => {
    await using prefill = await simPrefill("p2p-zmq");
    await using decode = await simDecode("p2p-zmq");
    // The sims refuse KV that doesn't fit; what vLLM does with it shows as two numbers that differ.
    const real = prefill.channel.client(PrefillService);
    const off = async (...args: Parameters<typeof real.prefill>) => {
      const answer = await real.prefill(...args);
      return { ...answer, firstLogprob: answer.firstLogprob! - 0.5 };
    };
    const control = { client: () => ({ ...real, prefill: off }) } as unknown as RpcChannel;
    const result = await sendPairCanary({ info: prefill.instance.info(), control }, side(decode), {
      timeoutMs: 10_000,
    });
    assert.equal(result.kind, "wrong", JSON.stringify(result));
    assert.match(canaryFault(result)!, /off by 0\.500.*does not answer from the KV it was sent/);
  });

  it("tells what failed: prefill, decode, or nothing in time", async () => {
    await using prefill = await simPrefill("p2p-zmq", {}, { faults: ["refuse:status=500"] });
    await using good = await simPrefill("p2p-zmq");
    await using decode = await simDecode("p2p-zmq");
    const failed = await sendPairCanary(side(prefill), side(decode), { timeoutMs: 10_000 });
    assert.match(canaryFault(failed)!, /prefill engine failed/);
    assert.equal(decode.instance.load().reserved, 0, "its reservation is given back");
    await using stalled = await simDecode("p2p-zmq", {}, { faults: ["stall"] });
    assert.match(
      canaryFault(await sendPairCanary(side(good), side(stalled), { timeoutMs: 500 }))!,
      /nothing came within 0\.5 s/,
    );
  });
});
