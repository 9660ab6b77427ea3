// Decode instances that send what they must not: the client gets the answer of another one, or an error, and nothing of
// it. What exactly an instance must not send is in leg/answer-check.test.ts.
import assert from "node:assert/strict";
import { deploy } from "../support/deployment.ts";
import { startDecode, startPrefill, twoTokens, type DecodeLeg } from "../support/fake-instance.ts";

const UNREADABLE_END = Buffer.from([4 * 8 + 2, 2, 0x08, 0xff]);

for (const [what, lie] of [
  ["half an event", (leg: DecodeLeg) => leg.events('data: {"id":"x","cho')],
  ["[DONE] in mid-stream", (leg: DecodeLeg) => leg.events("data: [DONE]\n\n")],
  ["the engine's id", (leg: DecodeLeg) => leg.events('data: {"id":"cmpl-___prefill_addr_10.0.0.1:1_"}\n\n')],
  ["more than was asked for", (leg: DecodeLeg) => leg.events(`data: ${"x".repeat(2_000_000)}\n\n`)],
  ["an end that can't be read", (leg: DecodeLeg) => leg.raw(UNREADABLE_END)],
] as const) {
  describe(`an instance that sends ${what}`, () => {
    it("is at fault before the first byte: another one answers", async () => {
      await using prefill = await startPrefill({}, (leg) => leg.done());
      let lies = 0;
      const liar = (leg: DecodeLeg): void => {
        lies += 1;
        leg.accept();
        void leg.started.promise.then(() => lie(leg));
      };
      await using d1 = await startDecode({ instanceId: "d1" }, liar);
      await using d2 = await startDecode({ instanceId: "d2" }, (leg) => (lies === 0 ? liar(leg) : twoTokens(leg)));
      await using tandem = await deploy([prefill, d1, d2]);
      const { ending, client, receipt } = tandem.start({ maxTokens: 2 });
      await ending;
      assert.match(client.text, /^data: \{"choices":\[\{"index":0,"text":"a"\}\]\}\n\ndata: .*"b"\}\]\}\n\n$/);
      assert.equal(lies, 1);
      assert.deepEqual(receipt.fallbacks, [`retry:${what.startsWith("an end") ? "transfer" : "decode"}:engine_failed`]);
    });

    it("is at fault after it: the stream ends with an error", async () => {
      await using prefill = await startPrefill({}, (leg) => leg.done());
      await using decode = await startDecode();
      await using tandem = await deploy([prefill, decode], { limits: { replayMode: "never" } });
      const { ending, client } = tandem.start({ maxTokens: 2 });
      const leg = (await decode.legs.next("the reservation")).accept();
      await leg.started.promise;
      leg.events("data: 1\n\n");
      await client.got(1);
      lie(leg);
      await assert.rejects(ending, { code: "engine_failed" });
      assert.equal(client.text, "data: 1\n\n");
    });
  });
}
