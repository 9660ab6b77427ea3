// How answers and failures reach a client.
import assert from "node:assert/strict";
import { connect } from "node:net";
import { once } from "node:events";
import { ServiceError } from "../../../services/common/errors.ts";
import { deferred, eventually } from "../../support/waits.ts";
import { answer, ENDING, untilGone, type Script } from "./support/relay.ts";
import { errorOf, startRest, type Rest } from "./support/rest.ts";

const COMPLETIONS = "/v1/completions";
const CHAT = "/v1/chat/completions";
const BODY = { prompt: "hello" };
const STREAM = { prompt: "hello", stream: true };

/** Waits until the client is gone, as the relay does with a running leg. */
describe("an answer", () => {
  it("that streams comes as events with [DONE] at the end", async () => {
    await using rest = await startRest();
    const response = await rest.post(CHAT, { messages: [{ role: "user", content: "hi" }], stream: true });
    assert.equal(response.status, 200);
    assert.equal(response.headers.get("content-type"), "text/event-stream; charset=utf-8");
    assert.equal(response.headers.get("cache-control"), "no-cache");
    assert.equal(response.headers.get("x-accel-buffering"), "no");
    const text = await response.text();
    assert.match(text, /^data: \{.*\}\n\ndata: \{.*\}\n\ndata: \[DONE\]\n\n$/);
  });

  it("in one piece is the JSON body with its length", async () => {
    await using rest = await startRest();
    const response = await rest.post(COMPLETIONS, BODY);
    assert.equal(response.headers.get("content-type"), "application/json");
    assert.equal(response.headers.get("content-length"), "28");
    assert.deepEqual(await response.json(), { object: "text_completion" });
  });

  it("holds its headers back until the first bytes are there", async () => {
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

  it("says when it was given in another way than planned", async () => {
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

  it("in the middle of an answer in one piece still has its own status", async () => {
    await using rest = await startRest({
      script: async ({ sink }) => {
        sink.start();
        throw new ServiceError("kv_transfer_failed", "The KV transfer failed.");
      },
    });
    assert.equal((await rest.post(COMPLETIONS, BODY)).status, 502);
  });

  it("that is the engine's word comes as the engine said it", async () => {
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

  it("of the engine's about us is not passed on", async () => {
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

describe("a client that leaves", () => {
  it("mid-stream ends its legs", async () => {
    await using rest = await startRest({
      script: (run) => {
        run.leg();
        run.sink.start();
        run.write("data: {}\n\n");
        return untilGone(run);
      },
    });
    const client = new AbortController();
    const response = await rest.post(COMPLETIONS, STREAM, { signal: client.signal });
    await response.body!.getReader().read();
    client.abort();
    await eventually("the legs are cancelled", () => rest.relay.runs[0]!.gone.aborted);
    await eventually("the receipt is closed", () => rest.serving.count === 0);
    const receipt = rest.receipts.list(1)[0]!;
    assert.deepEqual([receipt.outcome, receipt.status], ["cancelled", 200]);
    assert.equal(rest.logs.events("request ended").length, 1);
  });

  it("before the first byte ends its legs", async () => {
    await using rest = await startRest({ script: untilGone });
    const client = new AbortController();
    const response = rest.post(COMPLETIONS, BODY, { signal: client.signal }).catch(() => {});
    await eventually("the relay runs", () => rest.relay.runs.length === 1);
    client.abort();
    await response;
    await eventually("the request has ended", () => rest.serving.count === 0);
  });

  it("leaves the queue", async () => {
    await using rest = await startRest({ script: untilGone });
    rest.pool.set([
      { id: "p1", role: "prefill" },
      { id: "d1", role: "decode", slots: 1 },
    ]);
    const first = new AbortController();
    const second = new AbortController();
    const answers = [first, second].map(({ signal }) => rest.post(COMPLETIONS, BODY, { signal }).catch(() => {}));
    await eventually("both are in", () => rest.serving.count === 2);
    second.abort();
    await eventually("the one in the queue has ended", () => rest.serving.count === 1);
    assert.equal(rest.relay.runs.length, 1);
    first.abort();
    await Promise.all(answers);
  });

  it("in the middle of its body leaves nothing behind", async () => {
    await using rest = await startRest();
    const socket = connect(rest.port, "127.0.0.1");
    await once(socket, "connect");
    const half =
      "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{";
    await new Promise((resolve) => socket.write(half, resolve));
    socket.destroy();
    assert.equal((await rest.post(COMPLETIONS, BODY)).status, 200);
    assert.equal(rest.serving.count, 0);
  });
});

describe("a client that reads too slowly", () => {
  const chunk = `data: ${"x".repeat(16_000)}\n\n`;
  // More than the kernel buffers of a loopback connection.
  const CHUNKS = 2_000;

  /** Writes a long answer and waits whenever it is told to. */
  function longAnswer(): { script: Script; written: number } {
    const state = {
      written: 0,
      script: (async (run) => {
        run.leg();
        run.sink.start();
        const gone = new Promise<never>((_resolve, reject) => {
          run.gone.addEventListener("abort", () => reject(new ServiceError("cancelled", "gone")));
        });
        for (; state.written < CHUNKS; state.written += 1) {
          if (!run.write(chunk))
            await Promise.race([gone, new Promise<void>((resolve) => (run.sink.onDrain = resolve))]);
        }
        return ENDING;
      }) as Script,
    };
    return state;
  }

  /** Until the answer has stood still for a while, before its end. */
  async function untilHeld(state: { readonly written: number }): Promise<void> {
    let before = -1;
    let since = performance.now();
    await eventually("the answer is held back", () => {
      if (state.written !== before) since = performance.now();
      before = state.written;
      return before > 0 && before < CHUNKS && performance.now() - since > 60;
    });
  }

  /** A client that sends its request and reads nothing. */
  async function silentClient(rest: Rest) {
    const socket = connect(rest.port, "127.0.0.1");
    socket.pause();
    await once(socket, "connect");
    const body = JSON.stringify(STREAM);
    socket.write(
      `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    );
    return socket;
  }

  it("is paced, and gets all of it once it reads", async () => {
    const long = longAnswer();
    await using rest = await startRest({ script: long.script, bufferBytes: 65_536 });
    const socket = await silentClient(rest);
    await untilHeld(long);
    let bytes = 0;
    let tail = "";
    socket.setEncoding("latin1").on("data", (data: string) => {
      bytes += data.length;
      tail = (tail + data).slice(-100);
    });
    socket.resume();
    await eventually("the end arrives", () => tail.endsWith("data: [DONE]\n\n\r\n0\r\n\r\n"));
    assert.ok(bytes > CHUNKS * chunk.length);
    assert.equal(rest.receipts.list(1)[0]!.bodyBytes, CHUNKS * chunk.length + "data: [DONE]\n\n".length);
    socket.destroy();
  });

  it("is cut when it takes nothing at all", async () => {
    const long = longAnswer();
    await using rest = await startRest({ script: long.script, bufferBytes: 65_536, stallMs: 150 });
    const socket = await silentClient(rest);
    await eventually("it is cut", () => rest.serving.count === 0 && long.written > 0);
    const receipt = rest.receipts.list(1)[0]!;
    assert.equal(receipt.outcome, "cancelled");
    assert.match(receipt.error, /read nothing for 150 ms/);
    socket.destroy();
  });

  it("does not make a quiet stream look stalled", async () => {
    const go = deferred();
    await using rest = await startRest({
      stallMs: 50,
      script: async ({ sink, write }) => {
        sink.start();
        write("data: {}\n\n");
        await go.promise;
        return ENDING;
      },
    });
    const response = await rest.post(COMPLETIONS, STREAM);
    setTimeout(go.resolve, 200);
    assert.match(await response.text(), /\[DONE\]/);
  });
});

describe("a router without room", () => {
  it("refuses with 429 what the queue doesn't hold", async () => {
    await using rest = await startRest({ script: untilGone, queueLimit: 0 });
    rest.pool.set([
      { id: "p1", role: "prefill" },
      { id: "d1", role: "decode", slots: 1 },
    ]);
    const client = new AbortController();
    const first = rest.post(COMPLETIONS, BODY, { signal: client.signal }).catch(() => {});
    await eventually("the first runs", () => rest.relay.runs.length === 1);
    const response = await rest.post(COMPLETIONS, BODY);
    assert.equal(response.status, 429);
    assert.equal(response.headers.get("retry-after"), "1");
    assert.equal((await errorOf(response)).type, "RateLimitError");
    assert.equal(rest.receipts.list(1)[0] === undefined, false);
    assert.match(await rest.metrics.text(), /^tandem_refusals_total\{because="queue_full"\} 1$/m);
    client.abort();
    await first;
  });

  it("refuses with 503 after the queue's timeout, and says so", async () => {
    await using rest = await startRest({ script: untilGone, queueTimeoutMs: 30 });
    rest.pool.set([
      { id: "p1", role: "prefill" },
      { id: "d1", role: "decode", slots: 1 },
    ]);
    const client = new AbortController();
    const first = rest.post(COMPLETIONS, BODY, { signal: client.signal }).catch(() => {});
    await eventually("the first runs", () => rest.relay.runs.length === 1);
    const response = await rest.post(COMPLETIONS, BODY);
    assert.equal(response.status, 503);
    assert.match((await errorOf(response)).message, /30 ms in the queue/);
    client.abort();
    await first;
  });

  it("refuses with 429 the body that is too much with all others, and holds none when all have ended", async () => {
    await using rest = await startRest({ script: untilGone, bodyTotalBytes: 100_000 });
    const client = new AbortController();
    const large = { prompt: "x".repeat(80_000) };
    const first = rest.post(COMPLETIONS, large, { signal: client.signal }).catch(() => {});
    await eventually("the first runs", () => rest.relay.runs.length === 1);
    const response = await rest.post(COMPLETIONS, large);
    assert.equal(response.status, 429);
    assert.equal(response.headers.get("retry-after"), "1");
    assert.match(await rest.metrics.text(), /^tandem_refusals_total\{because="body_memory"\} 1$/m);
    client.abort();
    await first;
    await eventually("nothing is held", () => rest.bodyBudget.heldBytes === 0);
  });

  it("says with 503 which side is missing, and names no address", async () => {
    await using rest = await startRest();
    rest.pool.set([
      { id: "p1", role: "prefill", draining: "10.1.2.3:3101 broke" },
      { id: "d1", role: "decode" },
    ]);
    const response = await rest.post(COMPLETIONS, BODY);
    assert.equal(response.status, 503);
    assert.equal(
      (await errorOf(response)).message,
      "The model `tiny` can't be served: its only prefill instance is out (draining). Try again in a second.",
    );
    rest.pool.set([]);
    assert.match((await errorOf(await rest.post(COMPLETIONS, BODY))).message, /no instance has registered/);
  });
});
