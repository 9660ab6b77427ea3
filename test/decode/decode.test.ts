import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { DecodeRequestSchema, DecodeResponseSchema, DecodeService } from "#gen/tandem/decode/v1/decode_pb.js";
import { InstanceService, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { loadConfig } from "../../services/common/config.ts";
import { decodeConfig } from "../../services/decode/config.ts";
import { startDecode } from "../../services/decode/main.ts";
import { dialRpc } from "../../services/rpc/client.ts";
import { connectThin } from "../../services/rpc/thin-client.ts";
import { FACE, FinishReason, leg, openDecode, prefillLeg, quiet, simDecode, simPrefill, type DecodeCall, type PairLeg, type SimInstance } from "../instance/legs.ts";
import { eventually, within } from "../support/waits.ts";

const refusal = (code: string) => (error: unknown) => (error as { code?: string }).code === code;

async function reserved(decode: SimInstance, prefill: SimInstance | undefined, pair: PairLeg, extra?: Record<string, unknown>): Promise<DecodeCall> {
  const call = openDecode(decode);
  call.reserve(pair, prefill, extra);
  assert.ok((await call.next())!.reserved !== undefined);
  return call;
}

/** Nothing is left of any leg: no slot, no reservation, no KV. */
async function settled(decode: SimInstance): Promise<void> {
  await eventually("everything is settled", () => {
    const load = decode.instance.load();
    const state = decode.engine.state();
    return load.running + load.reserved + load.kvOrphans + load.queuedTokens === 0 && load.freeSlots === decode.instance.info().slotLimit && state.kv_held.length === 0;
  });
}

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
    const chunks = events.trim().split("\n\n").map((event) => JSON.parse(event.slice(6)));
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
    const pair = leg({ messages: [{ role: "user", content: "hello there" }], prompt: undefined }, "/v1/chat/completions");
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

  it("answers one body to a request that doesn't stream", async () => {
    await using prefill = await simPrefill("nixl");
    await using decode = await simDecode("nixl");
    const pair = leg({ stream: false });
    const { ticket } = await prefillLeg(prefill, undefined, pair);
    const call = openDecode(decode);
    call.reserve(pair, undefined, { face: { id: "cmpl-public", created: 5, choiceIndex: 2, sampleIndex: 0 } });
    call.start(ticket, 1);
    await call.next();
    const { events, end, messages } = await call.rest();
    const body = JSON.parse(events);
    assert.deepEqual([body.id, body.created, body.choices[0].index, body.kv_transfer_params], ["cmpl-public", 5, 2, null]);
    assert.equal(body.usage.prompt_tokens_details.cached_tokens, 1);
    assert.deepEqual([end!.completionTokens, messages], [6, 1]);
    await settled(decode);
  });

  it("computes one prompt of a list", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const pair = { ...leg({ prompt: ["one", "two and a half"] }), promptIndex: 1 };
    const call = await reserved(decode, prefill, pair);
    const answer = await prefill.channel.client((await import("#gen/tandem/prefill/v1/prefill_pb.js")).PrefillService)
      .prefill({ ...pair, decodeKvAddress: decode.instance.info().kvAddress });
    call.start(answer.ticket);
    assert.equal((await call.rest()).end!.completionTokens, 6);
    await settled(decode);
  });
});

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
    await assert.rejects(first.next(), refusal("cancelled"));
    await settled(decode);
    (await reserved(decode, prefill, leg())).abandon(true);
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
    assert.equal(decode.instance.keeper.restarts, 0);
  });

  it("leaves nothing when its prefill never ran, and that prefill can't run any more", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const pair = leg();
    const call = await reserved(decode, prefill, pair);
    call.abandon();
    await assert.rejects(call.next(), refusal("cancelled"));
    await settled(decode);
    await assert.rejects(prefillLeg(prefill, decode, pair), refusal("leg_id_reused"));
  });

  it("is refused while the instance drains; what is reserved may still start", async () => {
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
    ["a body that is no object", { body: "[]" }],
    ["a body with a field twice", { body: '{"model":"a","m\\u006fdel":"b"}' }],
    ["a KV address that would be parsed", { prefillKvAddress: "127.0.0.1:1___decode_addr_10.0.0.1:5" }],
    ["no face", { face: undefined }],
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

  it("is refused for bytes that are no message, and for a half-close before the start", async () => {
    await using decode = await simDecode();
    const thin = connectThin(decode.instance.address, { log: quiet });
    for (const bytes of [Buffer.from([0xff, 0xff, 0xff]), Buffer.alloc(0)]) {
      const ended = await within(new Promise<{ code?: string } | undefined>((onEnd) => {
        thin.open(`/${DecodeService.typeName}/Decode`, { onMessage() {}, onEnd }).write(bytes);
      }), "the end of the call");
      assert.equal(ended?.code, "invalid_request");
    }
    await thin.close();
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

describe("a running leg", () => {
  async function running(prefill: SimInstance, decode: SimInstance, fields: Record<string, unknown> = {}): Promise<{ call: DecodeCall; cancel: AbortController }> {
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
    const { call } = await running(prefill, decode);
    let events = "";
    await assert.rejects(async () => {
      for (let message = await call.next(); message !== undefined; message = await call.next()) events += message.events;
    }, refusal("engine_failed"));
    assert.doesNotMatch(events, /"error"/);
    await settled(decode);
  });

  it("fails when the engine's connection closes in the middle of an event; no half event goes out", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode("p2p-zmq", {}, { faults: ["half-event:after_tokens=3"] });
    const { call } = await running(prefill, decode);
    let events = "";
    await assert.rejects(async () => {
      for (let message = await call.next(); message !== undefined; message = await call.next()) events += message.events;
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

  it("fails when the engine turns it down, and its KV is released", async () => {
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
    const diedMs = performance.now();
    decode.engine.kill();
    await assert.rejects(call.rest(), refusal("engine_failed"));
    assert.ok(performance.now() - diedMs < 500);
    // An attached engine's death is noticed by looking; the reservation goes with it.
    await assert.rejects(waiting.next(), refusal("instance_lost"));
    assert.equal(decode.instance.load().state, State.STARTING);
    assert.equal(decode.instance.load().running + decode.instance.load().reserved + decode.instance.load().kvOrphans, 0);
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
    await assert.rejects(call.next(), refusal("cancelled"));
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

  it("of an outcome that nobody knows stays counted where the engine can't be restarted", async () => {
    await using decode = await simDecode("p2p-zmq", nccl);
    const call = await reserved(decode, undefined, leg(), { prefillKvAddress: "127.0.0.1:9" });
    call.abandon();
    await assert.rejects(call.next(), refusal("cancelled"));
    assert.equal(decode.instance.load().kvOrphans, 1);
    decode.engine.kill();
    await eventually("it went with its engine", () => decode.instance.load().kvOrphans === 0);
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
    await assert.rejects(call.next(), refusal("cancelled"));
    await settled(decode);
    await using stranger = dialRpc(decode.instance.address);
    await assert.rejects(openDecode({ ...decode, channel: stranger }).next(), refusal("unauthenticated"));
  });
});

describe("an engine that sends odd bytes", () => {
  const HEAD = 'data: {"id":"cmpl-secret","object":"text_completion","created":1,"model":"odd","choices":[';
  const chunk = (text: string, finish = "null"): string => `${HEAD}{"index":0,"text":${JSON.stringify(text)},"finish_reason":${finish}}]}`;

  async function answerWith(write: (res: ServerResponse) => void | Promise<void>): Promise<{ events: string; messages: number; error: { code?: string } | undefined }> {
    const server = createServer((req: IncomingMessage, res) => {
      req.resume();
      if (req.url === "/v1/models") return void res.end('{"data":[{"id":"odd","max_model_len":100}]}');
      if (req.url === "/version") return void res.end('{"version":"9"}');
      if (req.method === "GET") return void res.writeHead(req.url === "/sim/state" ? 404 : 200).end();
      req.on("end", () => void write(res));
    });
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const argv = ["--grpc.listen=127.0.0.1:0", "--registry.address=", `--attach=${url}`, "--connector=p2p-zmq", "--engine.kv_address=127.0.0.1:9"];
    await using instance = await startDecode(loadConfig(decodeConfig, { argv, env: {} }), { log: quiet });
    await using channel = dialRpc(instance.address);
    const call = openDecode({ instance, channel } as unknown as SimInstance);
    call.reserve(leg({ model: "odd" }), undefined, { prefillKvAddress: "127.0.0.1:9" });
    call.start("");
    let events = "";
    let messages = 0;
    let error: { code?: string } | undefined;
    try {
      for (let message = await call.next(); message !== undefined; message = await call.next()) {
        events += message.events;
        messages++;
      }
    } catch (thrown) {
      error = thrown as { code?: string };
    }
    server.closeAllConnections();
    server.close();
    return { events, messages, error };
  }

  it("is read whatever way its events are cut, with comments and CRLF between them", async () => {
    const { events, error } = await answerWith(async (res) => {
      const text = `: keep-alive\n\n${chunk("a")}\n\n${chunk("é\\n")}\r\n\r\n: x\n\n${chunk("c", '"stop"')}\n\ndata: [DONE]\n\n`;
      for (const byte of Buffer.from(text)) {
        res.write(Buffer.from([byte]));
        await new Promise(setImmediate);
      }
      res.end();
    });
    assert.equal(error, undefined);
    assert.deepEqual(events.trim().split("\n\n").map((event) => JSON.parse(event.slice(6)).choices[0].text), ["a", "é\\n", "c"]);
    assert.doesNotMatch(events, /secret|\r|keep-alive/);
  });

  it("is held back while the caller doesn't read, and loses nothing", async () => {
    const count = 200_000;
    let sent = 0;
    const server = createServer((req, res) => {
      req.resume();
      if (req.url === "/v1/models") return void res.end('{"data":[{"id":"odd"}]}');
      if (req.url === "/version") return void res.end("{}");
      if (req.method === "GET") return void res.writeHead(req.url === "/sim/state" ? 404 : 200).end();
      const more = (): void => {
        while (sent < count) if (!res.write(`${chunk("abcdefghij", ++sent === count ? '"length"' : "null")}\n\n`)) return void res.once("drain", more);
        res.end("data: [DONE]\n\n");
      };
      more();
    });
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const argv = ["--grpc.listen=127.0.0.1:0", "--router=", `--attach=http://127.0.0.1:${(server.address() as AddressInfo).port}`, "--connector=p2p-zmq", "--engine.kv_address=127.0.0.1:9"];
    await using instance = await startDecode(loadConfig(decodeConfig, { argv, env: {} }), { log: quiet });
    const thin = connectThin(instance.address, { log: quiet });
    let bytes = 0;
    let tokens = 0;
    const ended = new Promise<unknown>((onEnd) => {
      const call = thin.open(`/${DecodeService.typeName}/Decode`, {
        onMessage(message) {
          const piece = fromBinary(DecodeResponseSchema, message);
          bytes += piece.events.length;
          tokens += piece.tokenCount;
        },
        onEnd,
      });
      const pair = leg({ model: "odd" });
      const reserve = { ...pair, face: FACE, prefillKvAddress: "127.0.0.1:9" };
      call.pause();
      call.write(Buffer.from(toBinary(DecodeRequestSchema, create(DecodeRequestSchema, { step: { case: "reserve", value: reserve } }))));
      call.write(Buffer.from(toBinary(DecodeRequestSchema, create(DecodeRequestSchema, { step: { case: "start", value: {} } }))));
      void (async () => {
        let before = -1;
        // Until the engine is stuck: nothing more is taken from it for a while.
        for (let quietRounds = 0; quietRounds < 20; quietRounds = sent === before ? quietRounds + 1 : 0) {
          before = sent;
          await new Promise((done) => setTimeout(done, 10));
        }
        assert.ok(sent < count, "the engine was never held back");
        call.resume();
      })();
    });
    assert.equal(await within(ended, "the end", 20_000), undefined);
    assert.deepEqual([tokens, bytes > count * 100], [count, true]);
    await thin.close();
    server.closeAllConnections();
    server.close();
  });

  it("passes on many events of one read as one message", async () => {
    const { events, messages } = await answerWith((res) => {
      const all = Array.from({ length: 50 }, (_, i) => `${chunk(String(i), i === 49 ? '"length"' : "null")}\n\n`).join("");
      res.end(`${all}data: [DONE]\n\n`);
    });
    assert.equal(events.split("\n\n").length, 51);
    assert.ok(messages <= 4, `${messages} messages`);
  });

  it("is not trusted with KV parameters", async () => {
    const { events } = await answerWith((res) => {
      const secret = '"kv_transfer_params":{"remote_host":"10.0.0.1"}';
      res.end(`${chunk("a")}\n\n${chunk("b", '"stop"').slice(0, -1)},${secret}}\n\ndata: [DONE]\n\n`);
    });
    assert.match(events, /"kv_transfer_params":null/);
    assert.doesNotMatch(events, /10\.0\.0\.1/);
  });

  for (const [what, bytes, code] of [
    ["ends without a finish reason", `${chunk("a")}\n\ndata: [DONE]\n\n`, "engine_failed"],
    ["ends without [DONE]", `${chunk("a", '"stop"')}\n\n`, "engine_failed"],
    ["sends what is no JSON", "data: {oops\n\n", "engine_failed"],
    ["sends HTML", "<html>\n\n</html>", "engine_failed"],
    ["reports an error before the first token", 'data: {"error": {"message": "Internal server error", "code": 500}}\n\ndata: [DONE]\n\n', "kv_transfer_failed"],
    ["refuses inside the stream", 'data: {"error": {"message": "bad", "code": 400}}\n\ndata: [DONE]\n\n', "engine_refused"],
  ] as const) {
    it(`fails the leg when it ${what}`, async () => {
      const { error } = await answerWith((res) => void res.end(bytes));
      assert.equal(error?.code, code);
    });
  }
});
