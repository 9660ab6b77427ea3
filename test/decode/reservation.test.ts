import assert from "node:assert/strict";
import { isDeepStrictEqual } from "node:util";
import { DecodeService } from "#gen/tandem/decode/v1/decode_pb.js";
import { InstanceService, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { dialRpc } from "../../services/rpc/channel.ts";
import {
  leg,
  openDecode,
  prefillLeg,
  quiet,
  refusal,
  reserved,
  settled,
  simDecode,
  simPrefill,
  type PairLeg,
} from "../instance/legs.ts";
import { manualClock } from "../support/manual-clock.ts";
import { eventually, within } from "../support/waits.ts";

describe("a reservation", () => {
  it("is refused when every slot is taken, and its slot comes free again", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode("p2p-zmq", { slots: 1 });
    const first = await reserved(decode, prefill, leg());
    assert.equal(decode.instance.load().freeSlots, 0);
    const second = openDecode(decode);
    second.reserve(leg(), prefill);
    await assert.rejects(second.next(), refusal("instance_busy"));
    first.abandon(true);
    assert.equal(await first.next(), undefined);
    await settled(decode);
    (await reserved(decode, prefill, leg())).abandon(true);
  });

  it("is refused when its engine was restarted after the caller learnt its address", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const stale = openDecode(decode);
    stale.reserve(leg(), prefill, { decodeKvAddress: "127.0.0.1:9" });
    await assert.rejects(stale.next(), (error: { code?: string }) => error.code === "instance_unavailable");
    const fresh = openDecode(decode);
    fresh.reserve(leg(), prefill, { decodeKvAddress: decode.instance.info().kvAddress });
    await fresh.next();
    fresh.abandon(true);
  });

  it("ends as soon as its engine dies, and none is granted from then on", async () => {
    await using prefill = await simPrefill();
    // Nothing is polled on a clock that stands still.
    await using decode = await simDecode("p2p-zmq", {}, {}, manualClock());
    const call = await reserved(decode, prefill, leg());
    decode.engine.kill();
    await assert.rejects(within(call.next(), "its end"), refusal("instance_lost"));
    const { state, reason } = decode.instance.load();
    assert.equal(state, State.STARTING);
    assert.match(reason, /port/);
    const late = openDecode(decode);
    late.reserve(leg(), prefill);
    await assert.rejects(within(late.next(), "the refusal"), refusal("instance_unavailable"));
  });

  it("expires when it isn't started, and the KV that came meanwhile is released", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode("p2p-zmq", { "reservation.hold_ms": 150 });
    const pair = leg();
    const call = await reserved(decode, prefill, pair);
    await prefillLeg(prefill, decode, pair);
    assert.equal(decode.engine.state().kv_orphans, 1);
    await assert.rejects(call.next(), refusal("reservation_expired"));
    await settled(decode);
  });

  it("shows the KV that came for it in the instance's load, and what came after it had ended", async () => {
    const clock = manualClock();
    await using prefill = await simPrefill();
    await using decode = await simDecode("p2p-zmq", {}, {}, clock);
    const pair = leg();
    const call = await reserved(decode, prefill, pair);
    await prefillLeg(prefill, decode, pair);
    const shown = async (): Promise<readonly number[]> => {
      await clock.pass(1_000);
      const { engineKvHeld, engineKvLate } = decode.instance.load();
      return [engineKvHeld, engineKvLate];
    };
    await eventually("it is held", async () => isDeepStrictEqual(await shown(), [1, 0]));
    call.abandon();
    assert.equal(await call.next(), undefined);
    await settled(decode);
    // As from a link that was silent meanwhile.
    const late = await fetch(`${prefill.engine.url}/v1/completions`, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        "x-request-id": `___prefill_addr_${prefill.engine.kvAddress!}___decode_addr_${decode.engine.kvAddress!}_${pair.legId}`,
      },
      body: JSON.stringify({ ...JSON.parse(pair.body), stream: false, max_tokens: 1 }),
    });
    assert.match(await late.text(), /kv_refused: settled/);
    await eventually("it was turned away", async () => isDeepStrictEqual(await shown(), [0, 1]));
  });

  it("is settled when the router's connection breaks between the legs", async () => {
    await using prefill = await simPrefill("p2p-zmq", {}, { requestMs: 200 });
    await using decode = await simDecode();
    const pair = leg();
    const router = dialRpc(decode.instance.address);
    const call = openDecode({ ...decode, channel: router });
    call.reserve(pair, prefill);
    await call.next();
    // The prefill runs on while the router dies: its KV arrives after the call broke.
    const prefilled = prefillLeg(prefill, decode, pair);
    await eventually("prefill runs", () => prefill.instance.load().running === 1);
    const broken = assert.rejects(call.next());
    await router[Symbol.asyncDispose]();
    await broken;
    await eventually("it is counted", () => decode.instance.load().kvOrphans === 1);
    assert.equal(decode.instance.load().freeSlots, decode.instance.info().slotLimit - 1);
    await prefilled;
    await settled(decode);
    assert.equal(decode.instance.supervisor.restarts, 0);
  });

  it("is settled two seconds after its router fell silent, while an answer that runs goes on", async () => {
    const clock = manualClock();
    await using prefill = await simPrefill();
    await using decode = await simDecode("p2p-zmq", {}, {}, clock);
    // Its clock does not move, so it says its first message and then nothing, as a router that is stopped.
    await using router = dialRpc(decode.instance.address, {
      clock: manualClock(),
      heartbeat: { method: InstanceService.method.watchLoad, message: () => ({}), onMessage() {}, onRefused() {} },
    });
    const paused = { ...decode, channel: router };
    const [idle, running] = [leg(), leg({ max_tokens: 4, ignore_eos: true })];
    const waiting = await reserved(paused, prefill, idle);
    await prefillLeg(prefill, decode, idle);
    assert.equal(decode.engine.state().kv_orphans, 1);
    const answer = await reserved(paused, prefill, running);
    const { ticket } = await prefillLeg(prefill, decode, running);
    answer.start(ticket);
    await answer.next();
    for (let tick = 0; tick < 30; tick++) await clock.pass(125);
    await assert.rejects(within(waiting.next(), "the end of the reservation"), refusal("reservation_expired"));
    await eventually("its KV is released", () => decode.engine.state().kv_orphans === 0);
    assert.equal((await answer.rest()).end!.completionTokens, 4);
    await settled(decode);
  });

  it("is settled though its prefill instance is gone and it is unknown what was sent", async () => {
    await using decode = await simDecode();
    const prefill = await simPrefill();
    const pair = leg();
    const call = await reserved(decode, prefill, pair);
    await prefillLeg(prefill, decode, pair);
    await prefill[Symbol.asyncDispose]();
    call.abandon();
    assert.equal(await call.next(), undefined);
    await settled(decode);
  });

  it("leaves nothing when its prefill never ran, and that prefill can't run any more", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const pair = leg();
    const call = await reserved(decode, prefill, pair);
    call.abandon();
    assert.equal(await call.next(), undefined);
    await settled(decode);
    await assert.rejects(prefillLeg(prefill, decode, pair), refusal("leg_id_reused"));
  });

  it("is refused while the instance drains; a leg that is reserved may still start", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const pair = leg({ max_tokens: 30, ignore_eos: true });
    const call = await reserved(decode, prefill, pair);
    const control = decode.channel.client(InstanceService);
    assert.equal((await control.drain({ reason: "test" })).remaining, 1);
    assert.deepEqual([decode.instance.load().state, decode.instance.load().reason], [State.DRAINING, "test"]);
    const late = openDecode(decode);
    late.reserve(leg(), prefill);
    await assert.rejects(late.next(), refusal("instance_unavailable"));
    const { ticket } = await prefillLeg(prefill, decode, pair);
    call.start(ticket);
    assert.equal((await call.rest()).end!.completionTokens, 30);
    await control.undrain({});
    assert.equal(decode.instance.load().state, State.SERVING);
  });

  for (const [what, change] of [
    ["a leg id that is not hex", { legId: "x".repeat(32) }],
    ["a path that can't be split", { path: "/v1/embeddings" }],
    ["a body that is not an object", { body: "[]" }],
    ["a body with a field twice", { body: '{"model":"a","m\\u006fdel":"b"}' }],
    ["a KV address that would be parsed", { prefillKvAddress: "127.0.0.1:1___decode_addr_10.0.0.1:5" }],
    ["no public id", { identity: undefined }],
  ] as const) {
    it(`is refused for ${what}`, async () => {
      await using decode = await simDecode();
      const call = openDecode(decode);
      call.reserve({ ...leg(), ...change } as PairLeg, undefined, { prefillKvAddress: "127.0.0.1:9", ...change });
      await assert.rejects(call.next(), refusal("invalid_request"));
      await settled(decode);
    });
  }
});

describe("a call that breaks the rules", () => {
  it("is refused when it starts before it reserves, or reserves twice", async () => {
    await using decode = await simDecode();
    const early = openDecode(decode);
    early.start("x");
    await assert.rejects(early.next(), refusal("invalid_request"));
    const twice = await reserved(decode, undefined, leg(), { prefillKvAddress: "127.0.0.1:9" });
    twice.reserve(leg(), undefined, { prefillKvAddress: "127.0.0.1:9" });
    await assert.rejects(twice.next(), refusal("invalid_request"));
    await settled(decode);
  });

  it("is refused for bytes that are not a message, and for a half-close before the start", async () => {
    await using decode = await simDecode();
    const thin = dialRpc(decode.instance.address, { log: quiet });
    for (const bytes of [Buffer.from([0xff, 0xff, 0xff]), Buffer.alloc(0)]) {
      const ended = await within(
        new Promise<{ code?: string } | undefined>((onEnd) => {
          thin.open(`/${DecodeService.typeName}/Decode`, { onMessage() {}, onEnd }).write(bytes);
        }),
        "the end of the call",
      );
      assert.equal(ended?.code, "invalid_request");
    }
    await thin[Symbol.asyncDispose]();
    const call = await reserved(decode, undefined, leg(), { prefillKvAddress: "127.0.0.1:9" });
    call.halfClose();
    await assert.rejects(call.next(), refusal("invalid_request"));
    await settled(decode);
  });

  it("is refused for a leg id that is in use", async () => {
    await using decode = await simDecode();
    const pair = leg();
    await reserved(decode, undefined, pair, { prefillKvAddress: "127.0.0.1:9" });
    const again = openDecode(decode);
    again.reserve(pair, undefined, { prefillKvAddress: "127.0.0.1:9" });
    await assert.rejects(again.next(), refusal("leg_id_reused"));
  });
});
