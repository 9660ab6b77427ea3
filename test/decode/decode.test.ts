import assert from "node:assert/strict";
import { State } from "#gen/tandem/instance/v1/instance_pb.js";
import { PrefillService } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { dialRpc } from "../../services/rpc/channel.ts";
import {
  FinishReason,
  leg,
  openDecode,
  prefillLeg,
  refusal,
  reserved,
  settled,
  simDecode,
  simPrefill,
  type DecodeCall,
  type SimInstance,
} from "../instance/legs.ts";
import { eventually, within } from "../support/waits.ts";

describe("a request over both legs", () => {
  it("streams whole events under the public id and ends with usage, P2P", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const pair = leg({ stream_options: { include_usage: true } });
    const call = await reserved(decode, prefill, pair);
    assert.equal(decode.instance.load().reserved, 1);
    const answer = await prefillLeg(prefill, decode, pair);
    assert.ok(answer.promptTokens > 0);
    call.start(answer.ticket, 3);
    const { events, tokens, end } = await call.rest();
    assert.ok(events.endsWith("\n\n"));
    assert.doesNotMatch(events, /prefill_addr|\[DONE\]|127\.0\.0\.1/);
    const chunks = events
      .trim()
      .split("\n\n")
      .map((event) => JSON.parse(event.slice(6)));
    for (const chunk of chunks) assert.deepEqual([chunk.id, chunk.created], ["cmpl-public", 1_700_000_000]);
    assert.equal(chunks.at(-1).usage.completion_tokens, 6);
    assert.equal(chunks.at(-1).usage.prompt_tokens_details.cached_tokens, 3);
    assert.equal(end!.finishReason, FinishReason.LENGTH);
    assert.equal(end!.promptTokens, answer.promptTokens);
    assert.deepEqual([end!.completionTokens, end!.cachedTokens, tokens], [6, 3, 6]);
    assert.ok(end!.firstTokenMs > 0 && end!.generationMs > 0);
    await settled(decode);
  });

  it("streams with NIXL, where reservation and start go together", async () => {
    await using prefill = await simPrefill("nixl");
    await using decode = await simDecode("nixl");
    const pair = leg(
      { messages: [{ role: "user", content: "hello there" }], prompt: undefined },
      "/v1/chat/completions",
    );
    const answer = await prefillLeg(prefill, undefined, pair);
    assert.match(answer.ticket, /remote_engine_id/);
    const call = openDecode(decode);
    call.reserve(pair, undefined);
    call.start(answer.ticket);
    assert.ok((await call.next())!.reserved !== undefined);
    const { events, end } = await call.rest();
    assert.doesNotMatch(events, /"usage"|remote_|\[DONE\]/);
    assert.match(events, /^data: \{"id":"cmpl-public","object":"chat.completion.chunk","created":1700000000,/);
    assert.equal(end!.completionTokens, 6);
    assert.equal(decode.engine.state().outcomes.finished, 2); // One of them proved that the engine works.
    await settled(decode);
  });

  it("answers a non-streaming request with one body", async () => {
    await using prefill = await simPrefill("nixl");
    await using decode = await simDecode("nixl");
    const pair = leg({ stream: false });
    const { ticket } = await prefillLeg(prefill, undefined, pair);
    const call = openDecode(decode);
    call.reserve(pair, undefined, { identity: { id: "cmpl-public", created: 5, choiceIndex: 2, sampleIndex: 0 } });
    call.start(ticket, 1);
    await call.next();
    const { events, end, tokens } = await call.rest();
    const body = JSON.parse(events);
    assert.deepEqual(
      [body.id, body.created, body.choices[0].index, body.kv_transfer_params],
      ["cmpl-public", 5, 2, null],
    );
    assert.equal(body.usage.prompt_tokens_details.cached_tokens, 1);
    assert.deepEqual([end!.completionTokens, tokens], [6, 6]);
    await settled(decode);
  });

  it("learns from a vLLM's first answer in one piece how to join its streams", async () => {
    await using prefill = await simPrefill("nixl");
    await using decode = await simDecode("nixl", { "engine.kind": "vllm" });
    const ask = async (fields: object): Promise<{ reportsTokens: boolean; body: any; tokens: number }> => {
      const pair = leg({ stream: false, temperature: 0, ...fields });
      const { ticket } = await prefillLeg(prefill, undefined, pair);
      const call = openDecode(decode);
      call.reserve(pair, undefined);
      call.start(ticket);
      const { reportsTokens } = (await call.next())!.reserved!;
      const { events, tokens } = await call.rest();
      return { reportsTokens, body: JSON.parse(events), tokens };
    };
    // Says more than a stream would.
    assert.equal((await ask({ echo: true })).reportsTokens, false);
    const first = await ask({});
    const second = await ask({});
    assert.deepEqual([first.reportsTokens, second.reportsTokens], [false, true]);
    assert.deepEqual([first.tokens, second.tokens], [6, 6]);
    assert.deepEqual(second.body, first.body);
    assert.deepEqual(Object.keys(second.body.choices[0]), Object.keys(first.body.choices[0]));
    assert.equal((await ask({ echo: true })).reportsTokens, false);
    await settled(decode);
  });

  it("computes one prompt of a list", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const pair = { ...leg({ prompt: ["one", "two and a half"] }), promptIndex: 1 };
    const call = await reserved(decode, prefill, pair);
    const answer = await prefill.channel
      .client(PrefillService)
      .prefill({ ...pair, decodeKvAddress: decode.instance.info().kvAddress });
    call.start(answer.ticket);
    assert.equal((await call.rest()).end!.completionTokens, 6);
    await settled(decode);
  });
});

describe("a running leg", () => {
  async function running(
    prefill: SimInstance,
    decode: SimInstance,
    fields: Record<string, unknown> = {},
  ): Promise<{ call: DecodeCall; cancel: AbortController }> {
    const cancel = new AbortController();
    const pair = leg({ max_tokens: 2_000, ignore_eos: true, ...fields });
    const call = openDecode(decode, { signal: cancel.signal });
    call.reserve(pair, prefill);
    await call.next();
    const { ticket } = await prefillLeg(prefill, decode, pair);
    call.start(ticket);
    return { call, cancel };
  }

  it("is aborted in the engine when the caller cancels, and frees its slot", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const outcome = decode.engine.nextOutcome();
    const { call, cancel } = await running(prefill, decode);
    await call.next();
    cancel.abort();
    assert.equal(await within(outcome, "the engine's end of it"), "aborted");
    await settled(decode);
  });

  it("is aborted in the engine when it is abandoned: its call ends well, and its slot is free", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const outcome = decode.engine.nextOutcome();
    const { call } = await running(prefill, decode);
    await call.next();
    call.abandon();
    call.halfClose();
    assert.equal((await call.rest()).end, undefined);
    assert.equal(await within(outcome, "the engine's end of it"), "aborted");
    await settled(decode);
  });

  it("is settled when it is abandoned before the first token", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode("p2p-zmq", {}, { faults: ["stall"] });
    const { call } = await running(prefill, decode);
    await eventually("it runs", () => decode.instance.load().running === 1);
    call.abandon();
    assert.equal(await call.next(), undefined);
    await settled(decode);
  });

  it("goes on to its end when the caller half-closes", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const { call } = await running(prefill, decode, { max_tokens: 30 });
    call.halfClose();
    assert.equal((await call.rest()).end!.completionTokens, 30);
    await settled(decode);
  });

  it("is aborted and settled when the caller cancels before the first token", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode("p2p-zmq", {}, { faults: ["stall"] });
    const { call, cancel } = await running(prefill, decode);
    await eventually("it runs", () => decode.instance.load().running === 1);
    cancel.abort();
    await assert.rejects(call.next());
    await settled(decode);
  });

  it("fails with a typed error when the engine reports one inside the stream", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode("p2p-zmq", {}, { faults: ["error-event:after_tokens=3"] });
    const { supervisor } = decode.instance;
    let looks = 0;
    supervisor.suspect = () => void looks++;
    const { call } = await running(prefill, decode);
    let events = "";
    await assert.rejects(async () => {
      for (let message = await call.next(); message !== undefined; message = await call.next())
        events += message.events;
    }, refusal("engine_failed"));
    assert.doesNotMatch(events, /"error"/);
    assert.equal(looks, 1, "it may be the last that vLLM's API server has to say");
    await settled(decode);
  });

  it("fails when the engine's connection closes in the middle of an event; no half event goes out", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode("p2p-zmq", {}, { faults: ["half-event:after_tokens=3"] });
    const { call } = await running(prefill, decode);
    let events = "";
    await assert.rejects(async () => {
      for (let message = await call.next(); message !== undefined; message = await call.next())
        events += message.events;
    }, refusal("engine_failed"));
    assert.ok(events.endsWith("\n\n"));
    await settled(decode);
  });

  it("fails with kv_transfer_failed when the KV is not there", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode("p2p-zmq", {}, { faults: ["drop-kv"] });
    const { call } = await running(prefill, decode);
    await assert.rejects(call.next(), refusal("kv_transfer_failed"));
    await settled(decode);
  });

  it("fails when the engine refuses it, and its KV is released", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode("p2p-zmq", {}, { faults: ["refuse:status=400"] });
    const { call } = await running(prefill, decode);
    await assert.rejects(call.next(), (error: { code?: string; engineAnswer?: { status: number; body: string } }) => {
      assert.equal(error.code, "engine_refused");
      assert.equal(error.engineAnswer?.status, 400);
      return true;
    });
    await settled(decode);
    assert.equal(decode.engine.state().kv_orphans, 0);
  });

  it("ends at once when the engine dies, and the instance says that it is not serving", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const { call } = await running(prefill, decode);
    await call.next();
    const waiting = await reserved(decode, prefill, leg());
    decode.engine.kill();
    await assert.rejects(call.rest(), refusal("engine_failed"));
    // An attached engine's death is noticed by looking; the reservation goes with it.
    await assert.rejects(waiting.next(), refusal("instance_lost"));
    assert.equal(decode.instance.load().state, State.STARTING);
    assert.equal(
      decode.instance.load().running + decode.instance.load().reserved + decode.instance.load().kvOrphans,
      0,
    );
  });
});

// The ids and the pushing are alike, so a p2p-zmq engine stands in for vLLM's P2P NCCL; only the means of freeing differ.
describe("KV that only a decode leg can free", () => {
  const nccl = { connector: "p2p-nccl" };

  it("is drained by a leg of one token when its request is abandoned", async () => {
    await using prefill = await simPrefill("p2p-zmq", nccl);
    await using decode = await simDecode("p2p-zmq", nccl);
    const pair = leg();
    const call = await reserved(decode, prefill, pair);
    await prefillLeg(prefill, decode, pair);
    assert.equal(decode.engine.state().kv_orphans, 1);
    call.abandon();
    assert.equal(await call.next(), undefined);
    await settled(decode);
    assert.equal(decode.engine.state().generation_tokens, 1);
  });

  it("is taken before a cancelled leg is stopped", async () => {
    await using prefill = await simPrefill("p2p-zmq", nccl);
    await using decode = await simDecode("p2p-zmq", nccl, { requestMs: 200 });
    const pair = leg({ max_tokens: 2_000, ignore_eos: true });
    const cancel = new AbortController();
    const call = openDecode(decode, { signal: cancel.signal });
    call.reserve(pair, prefill);
    await call.next();
    call.start((await prefillLeg(prefill, decode, pair)).ticket);
    await eventually("it runs", () => decode.instance.load().running === 1);
    const outcome = decode.engine.nextOutcome();
    cancel.abort();
    await assert.rejects(call.next());
    assert.equal(decode.instance.load().running, 1);
    assert.equal(await within(outcome, "the engine's end of it"), "aborted");
    await settled(decode);
    assert.ok(decode.engine.state().generation_tokens < 100);
  });

  it("is taken before an abandoned leg is stopped, and its call ends at once", async () => {
    await using prefill = await simPrefill("p2p-zmq", nccl);
    await using decode = await simDecode("p2p-zmq", nccl, { requestMs: 200 });
    const pair = leg({ max_tokens: 2_000, ignore_eos: true });
    const call = await reserved(decode, prefill, pair);
    call.start((await prefillLeg(prefill, decode, pair)).ticket);
    await eventually("it runs", () => decode.instance.load().running === 1);
    const outcome = decode.engine.nextOutcome();
    call.abandon();
    assert.equal(await call.next(), undefined);
    assert.equal(decode.instance.load().running, 1);
    assert.equal(await within(outcome, "the engine's end of it"), "aborted");
    await settled(decode);
    assert.ok(decode.engine.state().generation_tokens < 100);
  });

  it("is drained as well if the engine answers the leg with 500 before it looks for the KV", async () => {
    await using prefill = await simPrefill("p2p-zmq", nccl);
    await using decode = await simDecode("p2p-zmq", nccl, { faults: ["refuse:status=500:count=1"] });
    const pair = leg();
    const call = await reserved(decode, prefill, pair);
    call.start((await prefillLeg(prefill, decode, pair)).ticket);
    await assert.rejects(call.rest(), refusal("kv_transfer_failed"));
    await settled(decode);
    assert.equal(decode.engine.state().generation_tokens, 1);
  });
});

describe("instances with a join token", () => {
  it("settle between themselves with it", async () => {
    await using prefill = await simPrefill("p2p-zmq", { token: "join" });
    await using decode = await simDecode("p2p-zmq", { token: "join" });
    const pair = leg();
    const call = await reserved(decode, prefill, pair);
    await prefillLeg(prefill, decode, pair);
    call.abandon();
    assert.equal(await call.next(), undefined);
    await settled(decode);
    await using stranger = dialRpc(decode.instance.address);
    await assert.rejects(openDecode({ ...decode, channel: stranger }).next(), refusal("unauthenticated"));
  });
});
