// How answers and failures reach a client.
import assert from "node:assert/strict";
import { ServiceError } from "../../../services/common/errors.ts";
import { deferred, eventually } from "../../support/waits.ts";
import { answer } from "./support/relay.ts";
import { errorOf, startRest } from "./support/rest.ts";

const COMPLETIONS = "/v1/completions";
const CHAT = "/v1/chat/completions";
const BODY = { prompt: "hello" };
const STREAM = { prompt: "hello", stream: true };

describe("an answer", () => {
  it("that streams is a list of events with [DONE] at the end", async () => {
    await using rest = await startRest();
    const response = await rest.post(CHAT, { messages: [{ role: "user", content: "hi" }], stream: true });
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("content-type"), "text/event-stream; charset=utf-8");
    assert.equal(response.headers.get("cache-control"), "no-cache");
    assert.equal(response.headers.get("x-accel-buffering"), "no");
    const text = await response.text();
    assert.match(text, /^data: \{.*\}\n\ndata: \{.*\}\n\ndata: \[DONE\]\n\n$/);
  });

  it("that does not stream is the JSON body with its length", async () => {
    await using rest = await startRest();
    const response = await rest.post(COMPLETIONS, BODY);
    assert.equal(response.headers.get("content-type"), "application/json");
    assert.equal(response.headers.get("content-length"), "28");
    assert.deepEqual(await response.json(), { object: "text_completion" });
  });

  it("holds its headers back until the first bytes arrive", async () => {
    await using rest = await startRest();
    const go = deferred();
    rest.relay.script = async (run) => {
      await go.promise;
      return answer(run);
    };
    let answered = false;
    const response = rest.post(COMPLETIONS, STREAM).then((value) => ((answered = true), value));
    await eventually("the relay runs", () => rest.relay.runs.length === 1);
    assert.equal(answered, false);
    go.resolve();
    assert.equal((await response).status, 200);
  });

  it("names its id and where the time went", async () => {
    await using rest = await startRest();
    const completion = await rest.post(COMPLETIONS, STREAM);
    assert.match(completion.headers.get("x-request-id")!, /^cmpl-[0-9a-f]{32}$/);
    assert.match(
      completion.headers.get("server-timing")!,
      /^queue;dur=0\.\d, reserve;dur=1\.5, prefill;dur=20\.0, transfer;dur=2\.0$/,
    );
    assert.equal(completion.headers.get("x-tandem-degraded"), null);
    assert.equal(completion.headers.get("x-powered-by"), null);
    const chat = await rest.post(CHAT, { messages: [{ role: "user", content: "hi" }] });
    const id = chat.headers.get("x-request-id")!;
    assert.match(id, /^chatcmpl-[0-9a-f]{32}$/);
    assert.equal(rest.relay.runs[1]!.request.id, id);
    assert.equal(rest.receipts.find(id)?.outcome, "completed");
  });

  it("names its fallbacks in a header", async () => {
    await using rest = await startRest({
      script: (run) => {
        run.draft.fallbacks.push("retry:prefill:instance_lost", "retry:prefill:instance_lost");
        return answer(run);
      },
    });
    const response = await rest.post(COMPLETIONS, BODY);
    assert.equal(response.headers.get("x-tandem-degraded"), "retry:prefill:instance_lost");
  });
});

describe("a client's X-Request-Id", () => {
  it("is echoed and kept when it is harmless, and goes no further", async () => {
    await using rest = await startRest();
    const response = await rest.post(COMPLETIONS, BODY, { headers: { "x-request-id": "my-id_1.2" } });
    assert.equal(response.headers.get("x-request-id"), "my-id_1.2");
    const { request } = rest.relay.runs[0]!;
    assert.match(request.id, /^cmpl-[0-9a-f]{32}$/);
    assert.equal(rest.receipts.find("my-id_1.2")?.requestId, request.id);
  });

  for (const hostile of [
    "___prefill_addr_10.0.0.9:1___decode_addr_10.0.0.9:2_x",
    "a___b",
    "a b",
    "x".repeat(129),
    "a:1",
  ]) {
    it(`is ignored when it is ${hostile.slice(0, 20)}`, async () => {
      await using rest = await startRest();
      const response = await rest.post(COMPLETIONS, BODY, { headers: { "x-request-id": hostile } });
      assert.match(response.headers.get("x-request-id")!, /^cmpl-/);
      assert.doesNotMatch(JSON.stringify(rest.logs.lines), /10\.0\.0\.9/);
    });
  }
});

describe("a failure", () => {
  it("before the first byte has its own status and time to try again", async () => {
    await using rest = await startRest({
      script: async () => {
        throw new ServiceError("instance_busy", "All decode instances are busy.", { retryAfterS: 2.2 });
      },
    });
    for (const body of [BODY, STREAM]) {
      const response = await rest.post(COMPLETIONS, body);
      assert.equal(response.status, 503);
      assert.equal(response.headers.get("retry-after"), "3");
      assert.match(response.headers.get("x-request-id")!, /^cmpl-/);
      assert.deepEqual(await errorOf(response), {
        message: "All decode instances are busy.",
        type: "ServiceUnavailableError",
        param: null,
        code: 503,
      });
    }
  });

  it("after the first byte is an event, then [DONE], as vLLM ends such a stream", async () => {
    await using rest = await startRest({
      script: async ({ sink, leg, write }) => {
        leg();
        sink.start();
        write('data: {"choices":[]}\n\n');
        throw new ServiceError("instance_lost", "The decode instance was lost.");
      },
    });
    const response = await rest.post(COMPLETIONS, STREAM);
    assert.equal(response.status, 200);
    const events = (await response.text()).split("\n\n");
    assert.deepEqual(JSON.parse(events[1]!.slice("data: ".length)), {
      error: { message: "The decode instance was lost.", type: "InternalServerError", param: null, code: 502 },
    });
    assert.deepEqual(events.slice(2), ["data: [DONE]", ""]);
    const receipt = rest.receipts.find(response.headers.get("x-request-id")!)!;
    assert.deepEqual([receipt.outcome, receipt.errorCode, receipt.status], ["failed", "instance_lost", 200]);
  });

  it("in the middle of a non-streaming answer still has its own status", async () => {
    await using rest = await startRest({
      script: async ({ sink }) => {
        sink.start();
        throw new ServiceError("kv_transfer_failed", "The KV transfer failed.");
      },
    });
    assert.equal((await rest.post(COMPLETIONS, BODY)).status, 502);
  });

  it("that the engine reports reaches the client unchanged", async () => {
    const body =
      '{"error":{"message":"top_p must be in (0, 1], got 2.0.","type":"BadRequestError","param":"top_p","code":400}}';
    await using rest = await startRest({
      script: async () => {
        throw new ServiceError("engine_refused", "The engine refused it.", { engineAnswer: { status: 422, body } });
      },
    });
    const response = await rest.post(COMPLETIONS, BODY);
    assert.equal(response.status, 422);
    assert.equal(await response.text(), body);
  });

  it("that concerns the router's own access to the engine is not passed on", async () => {
    await using rest = await startRest({
      script: async () => {
        throw new ServiceError("engine_refused", "The engine refused it.", {
          engineAnswer: { status: 401, body: '{"error":"Unauthorized"}' },
        });
      },
    });
    assert.equal((await rest.post(COMPLETIONS, BODY)).status, 400);
  });

  it("that is a bug is a 500 that says nothing, and is logged with its stack", async () => {
    await using rest = await startRest({
      script: async () => {
        throw new TypeError("10.1.2.3:3201 is not a function");
      },
    });
    const response = await rest.post(COMPLETIONS, BODY);
    assert.equal(response.status, 500);
    assert.doesNotMatch(await response.text(), /10\.1\.2\.3|function/);
    assert.match(JSON.stringify(rest.logs.events("request ended")), /is not a function/);
  });
});
