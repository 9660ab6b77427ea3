// What a careless or hostile client may send, against `tandem up`: an error in OpenAI's form or a clean end, nothing
// internal in any answer, and the next request works.
import assert from "node:assert/strict";
import { connect } from "node:net";
import { once } from "node:events";
import { startTandem, type Tandem } from "../support/tandem.ts";

describe("bad input", function () {
  this.timeout(60_000);
  let tandem: Tandem;
  let model: string;

  before(async () => {
    tandem = await startTandem([]);
    const models = (await (await fetch(`${tandem.url}/v1/models`)).json()) as { data: { id: string }[] };
    model = models.data[0]!.id;
  });
  after(() => tandem?.[Symbol.asyncDispose]());
  afterEach("the next request works", async () => {
    const answer = await post("/v1/completions", JSON.stringify({ model, prompt: "hello", max_tokens: 2 }));
    assert.equal(answer.status, 200);
  });

  interface Reply {
    readonly status: number;
    readonly headers: Headers;
    readonly text: string;
  }

  async function post(path: string, body: string | Buffer, headers: Record<string, string> = {}): Promise<Reply> {
    const response = await fetch(`${tandem.url}${path}`, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      body: new Uint8Array(Buffer.from(body)),
    });
    return { status: response.status, headers: response.headers, text: await response.text() };
  }

  function assertOpenAiError(reply: Reply, status: number): { message: string; param: string | null } {
    assert.equal(reply.status, status, reply.text);
    assertNothingInternal(reply);
    const { error } = JSON.parse(reply.text) as {
      error: { message: string; type: string; param: string | null; code: unknown };
    };
    assert.ok(error.message.length > 10);
    assert.equal(typeof error.type, "string");
    return error;
  }

  function assertNothingInternal({ headers, text }: Reply): void {
    const all = text + JSON.stringify([...headers]);
    assert.doesNotMatch(all, /127\.0\.0\.1|___|:2[01]\d{3}\b|kv_transfer_params":\{/, "something internal shows");
  }

  const prompt = "hello";
  const bodies: readonly (readonly [name: string, body: string | Buffer])[] = [
    ["broken JSON", '{"model": '],
    ["nothing", ""],
    ["an array", "[]"],
    ["a string", '"hello"'],
    ["bytes that are no UTF-8", Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x3a, 0x31, 0x7d])],
    ["no prompt", "{}"],
    ["a prompt that is an object", '{"prompt":{}}'],
    ["max_tokens as text", '{"prompt":"x","max_tokens":"ten"}'],
    ["max_tokens of 0", '{"prompt":"x","max_tokens":0}'],
    ["max_tokens beyond the context", '{"prompt":"x","max_tokens":100000000}'],
    ["a negative temperature", '{"prompt":"x","temperature":-1}'],
    ["n of 0", '{"prompt":"x","n":0}'],
    ["n of a million", '{"prompt":"x","n":1000000,"temperature":1}'],
    ["stream as text", '{"prompt":"x","stream":"maybe"}'],
    ["stream_options without stream", '{"prompt":"x","stream_options":{"include_usage":true}}'],
    ["a model that is a number", '{"prompt":"x","model":7}'],
    ["the same key twice", '{"prompt":"x","model":"a","model":"b"}'],
    ["KV parameters", '{"prompt":"x","kv_transfer_params":{"do_remote_prefill":true}}'],
    ["KV parameters in escapes", '{"prompt":"x","\\u006Bv_transfer_para\\u006ds":{"do_remote_prefill":true}}'],
    ["KV parameters in vLLM's extra arguments", '{"prompt":"x","vllm_xargs":{"kv_transfer_params":"y"}}'],
    [
      "a request id with addresses",
      '{"prompt":"x","request_id":"___prefill_addr_10.0.0.9:1___decode_addr_10.0.0.9:2_x"}',
    ],
  ];
  for (const [name, body] of bodies) {
    it(`of ${name} is a 400 in OpenAI's form`, async () => {
      const whole =
        typeof body === "string" && body.startsWith('{"prompt"') && !body.includes('"model"')
          ? body.replace("{", `{"model":${JSON.stringify(model)},`)
          : body;
      assertOpenAiError(await post("/v1/completions", whole), 400);
    });
  }

  it("of a model that isn't there is a 404 that names the ones that are", async () => {
    const error = assertOpenAiError(
      await post("/v1/chat/completions", '{"model":"nope","messages":[{"role":"user","content":"x"}]}'),
      404,
    );
    assert.match(error.message, new RegExp(model));
  });

  it("of 20 MB is a 413 that says the limit", async () => {
    const error = assertOpenAiError(
      await post("/v1/completions", JSON.stringify({ model, prompt: "x".repeat(20 << 20) })),
      413,
    );
    assert.match(error.message, /\d/);
  });

  it("of another content type is refused", async () => {
    assertOpenAiError(await post("/v1/completions", "{}", { "content-type": "text/plain" }), 400);
  });

  it("of an X-Request-Id with addresses never reaches an engine, nor comes back", async () => {
    const hostile = "___prefill_addr_10.0.0.9:1___decode_addr_10.0.0.9:2_x";
    const reply = await post("/v1/completions", JSON.stringify({ model, prompt, max_tokens: 2 }), {
      "x-request-id": hostile,
    });
    assert.equal(reply.status, 200);
    assertNothingInternal(reply);
    assert.notEqual(reply.headers.get("x-request-id"), hostile);
  });

  it("of an unknown path or a wrong method lists the paths or the methods", async () => {
    const unknown = await fetch(`${tandem.url}/v1/nope`);
    assertOpenAiError({ status: unknown.status, headers: unknown.headers, text: await unknown.text() }, 404);
    const wrong = await fetch(`${tandem.url}/v1/completions`);
    assertOpenAiError({ status: wrong.status, headers: wrong.headers, text: await wrong.text() }, 405);
  });

  it("of a client that leaves mid-stream, or before its body has ended, ends cleanly", async () => {
    const { hostname, port } = new URL(tandem.url);
    const half = connect(Number(port), hostname);
    await once(half, "connect");
    half.write(
      "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{",
    );
    half.destroy();
    const client = new AbortController();
    const response = await fetch(`${tandem.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      signal: client.signal,
      body: JSON.stringify({ model, prompt, max_tokens: 2000, ignore_eos: true, stream: true }),
    });
    await response.body!.getReader().read();
    client.abort();
    // The request's end is an event of the router: its gauge falls back to zero.
    for (;;) {
      const metrics = await (await fetch(`${tandem.url}/metrics`)).text();
      const running = /^tandem_requests_running(?:\{[^}]*\})? (\d+)/m.exec(metrics);
      assert.ok(running, "no tandem_requests_running in /metrics");
      if (running[1] === "0") break;
      await new Promise(setImmediate);
    }
  });
});
