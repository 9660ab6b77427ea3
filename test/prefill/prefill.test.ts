import assert from "node:assert/strict";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { Outcome, PrefillService } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { State } from "#gen/tandem/instance/v1/instance_pb.js";
import { Outcomes, type PrefillOutcome } from "../../services/prefill/outcomes.ts";
import {
  freshLegId,
  leg,
  prefillLeg,
  simDecode,
  simPrefill,
  type PairLeg,
  type SimInstance,
} from "../instance/legs.ts";
import { startSimEngine } from "../../services/tiny-engine/server.ts";
import { manualClock } from "../support/manual-clock.ts";
import { deferred, eventually, nextEvent, untilQuiet, within } from "../support/waits.ts";

const refusal = (code: string) => (error: unknown) => (error as { code?: string }).code === code;
const outcomeOf = async (prefill: SimInstance, legId: string): Promise<Outcome> =>
  (await prefill.channel.client(PrefillService).getOutcome({ legId }, { timeoutMs: 5_000 })).outcome;

describe("a prefill leg", () => {
  it("transfers the KV and reports what it counted", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const pair = leg({ max_tokens: 500, min_tokens: 10, n: 1, stream_options: { include_usage: true } });
    const answer = await prefillLeg(prefill, decode, pair);
    assert.equal(answer.ticket, "");
    assert.ok(answer.promptTokens > 5 && answer.engineMs > 0);
    assert.equal(answer.cachedTokens, 0);
    assert.equal(decode.engine.state().kv_orphans, 1);
    assert.equal(await outcomeOf(prefill, pair.legId), Outcome.SENT);
    assert.equal(prefill.engine.state().generation_tokens, 1);
    assert.equal(prefill.instance.load().running, 0);
  });

  it("keeps its ticket with the outcome where there is one", async () => {
    await using prefill = await simPrefill("nixl");
    const pair = leg();
    const { ticket } = await prefillLeg(prefill, undefined, pair);
    const outcome = await prefill.channel.client(PrefillService).getOutcome({ legId: pair.legId });
    assert.deepEqual([outcome.outcome, outcome.ticket], [Outcome.SENT, ticket]);
  });

  it("is refused with the engine's own words, and sent nothing", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const pair = leg({ temperature: -1 });
    await assert.rejects(
      prefillLeg(prefill, decode, pair),
      (error: { code?: string; engineAnswer?: { status: number; body: string } }) => {
        assert.deepEqual([error.code, error.engineAnswer?.status], ["engine_refused", 400]);
        assert.match(error.engineAnswer!.body, /temperature/);
        return true;
      },
    );
    assert.equal(await outcomeOf(prefill, pair.legId), Outcome.NOTHING_SENT);
  });

  it("is not begun for a decode engine that is gone, where that would wedge the engine", async () => {
    const asNccl = { connector: "p2p-nccl" };
    const clock = manualClock();
    await using prefill = await simPrefill("p2p-zmq", asNccl, { faults: ["upstream"] }, clock);
    const decode = await simDecode("p2p-zmq", asNccl, { faults: ["upstream"] });
    const kvAddress = decode.instance.info().kvAddress;
    const toDecode = (): Promise<unknown> =>
      prefill.channel.client(PrefillService).prefill({ ...leg(), decodeKvAddress: kvAddress });
    await toDecode();
    assert.equal(prefill.engine.state().outcomes.finished, 1);
    decode.engine.kill();
    await untilQuiet();
    for (let count = 0; count < 8; count++) await assert.rejects(toDecode(), refusal("kv_transfer_failed"));
    const { finished, failed, aborted } = prefill.engine.state().outcomes;
    assert.deepEqual([finished, failed, aborted], [1, 0, 0]);
    await decode[Symbol.asyncDispose]();
    // Its address may be another engine's by now.
    await using _again = await startSimEngine({ role: "decode", connector: "p2p-zmq", kvListen: kvAddress });
    await toDecode();
  });

  it("is refused when its id was used, its slot is taken, or its address would be parsed", async () => {
    await using prefill = await simPrefill("p2p-zmq", { slots: 1 }, { requestMs: 300 });
    await using decode = await simDecode();
    const pair = leg();
    const running = prefillLeg(prefill, decode, pair);
    await eventually("it runs", () => prefill.instance.load().running === 1);
    assert.ok(prefill.instance.load().queuedTokens > 0);
    await assert.rejects(prefillLeg(prefill, decode, leg()), refusal("instance_busy"));
    await running;
    await assert.rejects(prefillLeg(prefill, decode, pair), refusal("leg_id_reused"));
    assert.equal(prefill.instance.load().queuedTokens, 0);
    const client = prefill.channel.client(PrefillService);
    await assert.rejects(client.prefill({ ...leg(), decodeKvAddress: "" }), refusal("invalid_request"));
    await assert.rejects(
      client.prefill({ ...leg(), decodeKvAddress: "a:1___decode_addr_b:2" }),
      refusal("invalid_request"),
    );
    await assert.rejects(
      client.prefill({ ...leg({ prompt: ["a"] }), decodeKvAddress: "127.0.0.1:9", promptIndex: 4 }),
      refusal("invalid_request"),
    );
    await assert.rejects(
      client.prefill({ ...leg(), legId: "nope", decodeKvAddress: "127.0.0.1:9" }),
      refusal("invalid_request"),
    );
  });

  it("is refused when its engine was restarted after the decode instance learnt its address", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const pair = leg();
    const decodeKvAddress = decode.instance.info().kvAddress;
    const ask = (prefillKvAddress: string): Promise<unknown> =>
      prefill.channel
        .client(PrefillService)
        .prefill({ legId: pair.legId, path: pair.path, body: pair.body, decodeKvAddress, prefillKvAddress });
    await assert.rejects(ask("127.0.0.1:9"), refusal("instance_unavailable"));
    assert.equal(decode.engine.state().kv_held.length, 0);
    // The id is as good as new: nothing was done with it.
    await ask(prefill.instance.info().kvAddress);
  });

  it("can't be cancelled under P2P: it runs on, and its outcome is kept", async () => {
    await using prefill = await simPrefill("p2p-zmq", {}, { requestMs: 300 });
    await using decode = await simDecode();
    const pair = leg();
    const cancel = new AbortController();
    const call = prefillLeg(prefill, decode, pair, { signal: cancel.signal });
    await eventually("it runs", () => prefill.instance.load().running === 1);
    cancel.abort();
    await assert.rejects(call, refusal("cancelled"));
    assert.equal(prefill.instance.load().running, 1);
    assert.equal(await outcomeOf(prefill, pair.legId), Outcome.SENT);
    assert.equal(decode.engine.state().kv_orphans, 1);
  });

  it("is aborted in the engine where the connector allows it", async () => {
    await using prefill = await simPrefill("nixl", {}, { requestMs: 20 });
    prefill.engine.setFault("stall");
    const ended = prefill.engine.nextOutcome();
    const pair = leg();
    const cancel = new AbortController();
    const call = prefillLeg(prefill, undefined, pair, { signal: cancel.signal });
    await eventually("it runs", () => prefill.engine.state().running === 1);
    cancel.abort();
    await assert.rejects(call, refusal("cancelled"));
    assert.equal(await within(ended, "the engine's end of it"), "aborted");
    assert.equal(await outcomeOf(prefill, pair.legId), Outcome.NOTHING_SENT);
    assert.equal(prefill.instance.load().running, 0);
  });

  it("fails at once when the engine dies, and it is unknown what was sent", async () => {
    await using prefill = await simPrefill("p2p-zmq", {}, { faults: ["stall"] });
    await using decode = await simDecode();
    const pair = leg();
    const call = prefillLeg(prefill, decode, pair);
    await eventually("it runs", () => prefill.engine.state().running === 1);
    prefill.engine.kill();
    await assert.rejects(within(call, "the end of the leg"), refusal("engine_failed"));
    assert.equal(await outcomeOf(prefill, pair.legId), Outcome.UNKNOWN);
    await eventually("it is missed", () => prefill.instance.load().state === State.STARTING);
    await assert.rejects(prefillLeg(prefill, decode, leg()), refusal("instance_unavailable"));
  });

  it("fails when the KV can't be transferred", async () => {
    await using prefill = await simPrefill("p2p-zmq", {}, { kvPushTimeoutMs: 200 });
    await using decode = await simDecode("p2p-zmq", {}, { faults: ["silent-kv"] });
    const pair = leg();
    await assert.rejects(prefillLeg(prefill, decode, pair), refusal("kv_transfer_failed"));
    assert.equal(await outcomeOf(prefill, pair.legId), Outcome.UNKNOWN);
  });
});

describe("a prefill engine with KV for a decode engine that has died", () => {
  it("gets no further leg for it, nor for others until it has shown that it works", async () => {
    const nccl = { connector: "p2p-nccl" };
    await using prefill = await simPrefill("p2p-zmq", nccl, { faults: ["stall:count=1"] }, manualClock());
    await using decode = await simDecode("p2p-zmq", nccl);
    const sockets = new Set<Socket>();
    const dying = createServer((socket) => void sockets.add(socket)).listen(0, "127.0.0.1");
    await nextEvent(dying, "listening");
    const address = `127.0.0.1:${(dying.address() as AddressInfo).port}`;
    const send = (pair: PairLeg): Promise<unknown> =>
      prefill.channel.client(PrefillService).prefill({ ...pair, decodeKvAddress: address });
    send(leg()).catch(() => {});
    await eventually("it runs", () => prefill.instance.load().running === 1);
    dying.close();
    for (const socket of sockets) socket.destroy();
    await untilQuiet();
    const refused = leg();
    await assert.rejects(send(refused), /The decode engine is gone, so no KV was sent to it/);
    // Decode asks, and hears that it never ran.
    await assert.rejects(outcomeOf(prefill, refused.legId), refusal("not_found"));
    // It may hang on the dead one, and what is sent to it now would hang as well.
    await assert.rejects(prefillLeg(prefill, decode, leg()), refusal("instance_unavailable"));
    assert.deepEqual([prefill.instance.load().state, prefill.instance.load().readyInMs], [State.DRAINING, 1_000]);
  });
});

describe("the outcome of a leg", () => {
  it("is unknown for a leg that never arrived, which is refused from then on", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const pair = leg();
    await assert.rejects(outcomeOf(prefill, pair.legId), refusal("not_found"));
    await assert.rejects(prefillLeg(prefill, decode, pair), refusal("leg_id_reused"));
    await assert.rejects(outcomeOf(prefill, pair.legId), refusal("not_found"));
  });

  it("is forgotten after its time, and beyond the limit the oldest first", async () => {
    const clock = manualClock();
    const outcomes = new Outcomes({ keepMs: 100, limit: 2 }, clock);
    const end = async (id: string): Promise<void> => {
      outcomes.add(id, Promise.resolve({ outcome: Outcome.SENT, ticket: id }));
      await outcomes.of(id);
    };
    for (const id of ["a", "b", "c"]) await end(id);
    assert.deepEqual([outcomes.has("a"), outcomes.has("b")], [false, true]);
    assert.equal((await outcomes.of("c"))!.ticket, "c");
    clock.advance(200);
    await end("d");
    assert.deepEqual([outcomes.has("c"), outcomes.has("d")], [false, true]);
  });

  it("is waited for while the leg runs, also beyond the limit", async () => {
    const outcomes = new Outcomes({ keepMs: 100, limit: 1 }, manualClock());
    const ids = Array.from({ length: 5 }, freshLegId);
    const ends = ids.map((id) => {
      const end = deferred<PrefillOutcome>();
      outcomes.add(id, end.promise);
      return end;
    });
    const waits = ids.map((id) => outcomes.of(id));
    ids.forEach((id, index) => ends[index]!.resolve({ outcome: Outcome.UNKNOWN, ticket: id }));
    assert.deepEqual(
      (await Promise.all(waits)).map((outcome) => outcome!.ticket),
      ids,
    );
  });
});
