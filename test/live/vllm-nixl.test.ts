// The main job on real input: prompts through Tandem into two real vLLM processes, the KV moved by NIXL between them,
// and the answers equal to those of one plain vLLM.
import assert from "node:assert/strict";
import { once } from "node:events";
import { connect } from "node:net";
import { tandemClient } from "../../clients/client/index.ts";
import { startTandem, type Tandem } from "../support/tandem.ts";
import { eventually } from "../support/waits.ts";
import { ask, assertSame, post, type Question } from "./support/answers.ts";
import { MAX_MODEL_LEN, MODEL, prepareVllm, startVllm, type Vllm } from "./support/vllm.ts";

const SENTENCE = "Hello world, tell me a story about the sea. ";
const SCHEMA = {
  type: "object",
  additionalProperties: false,
  required: ["town", "wet"],
  properties: { town: { enum: ["Oslo", "Rome"] }, wet: { type: "boolean" } },
};
const TOOLS = ["look_up", "note"].map((name) => ({ type: "function", function: { name, parameters: SCHEMA } }));
// The prefill copy of these has one token, of which no parser can make a call or a whole value.
const NAMED = { tools: TOOLS, tool_choice: { type: "function", function: { name: "note" } }, max_tokens: 60 };
const REQUIRED = { tools: TOOLS, tool_choice: "required", max_tokens: 90 };
const AS_JSON = {
  response_format: { type: "json_schema", json_schema: { name: "weather", schema: SCHEMA, strict: true } },
  max_tokens: 60,
};

const REFUSED: readonly (readonly [string, Record<string, unknown>])[] = [
  ["a tool that must be called where there is none", { tool_choice: "required" }],
  ["a tool by a name that is none", { ...NAMED, tool_choice: { type: "function", function: { name: "other" } } }],
  [
    "a schema that is none",
    { response_format: { type: "json_schema", json_schema: { name: "bad", schema: { type: "nothing" } } } },
  ],
];
const CLIENT_STALL_MS = 2_000;

// From one token to most of the context, over block borders (32 tokens a block).
const CASES: readonly Question[] = [
  ...[1, 2, 3, 5, 8, 12, 20].map((count, index) =>
    completion(`completion, ${count} sentences`, SENTENCE.repeat(count), index % 2 === 0),
  ),
  ...[1, 2, 4, 7, 11, 18].map((count, index) =>
    chat(`chat, ${count} sentences`, SENTENCE.repeat(count), index % 2 === 0),
  ),
  completion("completion of one character", "a", true),
  completion("completion of token ids", [1, 277, 82, 224, 311, 297, 15, 262, 268, 273, 72, 260, 313], false),
  completion("completion of two prompts", [SENTENCE.repeat(2), `prefill and decode ${SENTENCE}`], false),
  completion("completion of two prompts, streamed", [SENTENCE.repeat(3), `decode and prefill ${SENTENCE}`], true),
  completion("three seeded choices", SENTENCE.repeat(3), false, { n: 3, temperature: 1, seed: 7 }),
  chat("two seeded choices, streamed", SENTENCE.repeat(2), true, { n: 2, temperature: 1, seed: 11 }),
  chat("chat with logprobs", SENTENCE.repeat(2), false, { logprobs: true, top_logprobs: 2 }),
  chat("chat with logprobs, streamed", SENTENCE.repeat(2), true, { logprobs: true, top_logprobs: 2 }),
  completion("two seeded choices of two prompts with logprobs", [SENTENCE, `decode ${SENTENCE}`], false, {
    n: 2,
    temperature: 1,
    seed: 3,
    logprobs: 2,
  }),
  completion("two prompts with logprobs, streamed", [SENTENCE, `decode ${SENTENCE}`], true, { logprobs: 2 }),
  chat("chat with max_completion_tokens alone", SENTENCE, false, { max_tokens: undefined, max_completion_tokens: 9 }),
  chat("chat with max_completion_tokens, which wins over max_tokens, streamed", SENTENCE, true, {
    max_completion_tokens: 7,
  }),
  ...[false, true].flatMap((stream) => [
    chat(`an answer by a JSON schema${stream ? ", streamed" : ""}`, SENTENCE, stream, { ...AS_JSON, logprobs: true }),
    chat(`a tool that must be called${stream ? ", streamed" : ""}`, SENTENCE, stream, REQUIRED),
    chat(`a tool called by name${stream ? ", streamed" : ""}`, SENTENCE, stream, NAMED),
  ]),
  chat("two seeded choices of a tool that must be called", SENTENCE, false, {
    ...REQUIRED,
    n: 2,
    temperature: 1,
    seed: 5,
  }),
];

function completion(name: string, prompt: unknown, stream: boolean, extra: Record<string, unknown> = {}): Question {
  return { name, path: "/v1/completions", body: body({ prompt, ...extra }, stream) };
}

function chat(name: string, content: string, stream: boolean, extra: Record<string, unknown> = {}): Question {
  return {
    name,
    path: "/v1/chat/completions",
    body: body({ messages: [{ role: "user", content }], ...extra }, stream),
  };
}

function body(fields: Record<string, unknown>, stream: boolean): Record<string, unknown> {
  return {
    model: MODEL,
    max_tokens: 24,
    temperature: 0,
    ...fields,
    ...(stream ? { stream: true, stream_options: { include_usage: true } } : {}),
  };
}

describe("a prompt through Tandem into real vLLM", function () {
  this.timeout(15 * 60_000);
  let plain: Vllm;
  let prefill: Vllm;
  let decode: Vllm;
  let tandem: Tandem;

  before(async () => {
    await prepareVllm();
    const flags = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"];
    [plain, prefill, decode] = await Promise.all([
      startVllm("plain", { flags }),
      startVllm("prefill", { flags }),
      startVllm("decode", { flags }),
    ]);
    tandem = await startTandem(
      ["--attach-prefill", prefill.url, "--attach-decode", decode.url, "--connector", "nixl"],
      { TANDEM_CLIENT_STALL_MS: String(CLIENT_STALL_MS), TANDEM_STREAM_BUFFER_BYTES: "65536" },
    );
  });
  after(async () => {
    await tandem?.[Symbol.asyncDispose]();
    await Promise.all([plain, prefill, decode].map((vllm) => vllm?.[Symbol.asyncDispose]()));
  });

  for (const item of CASES) {
    it(`answers as a plain vLLM does: ${item.name}`, async () => {
      const [expected, answer] = [await ask(plain.url, item), await ask(tandem.url, item)];
      assertSame(answer, expected);
    });
  }

  for (const [name, fields] of REFUSED) {
    it(`refuses as a plain vLLM does: ${name}`, async () => {
      const { path, body: asked } = chat(name, "hi", false, fields);
      const [expected, answer] = await Promise.all(
        [plain, tandem].map(async ({ url }) => {
          const response = await post(url, path, asked);
          const { error } = (await response.json()) as { error: { message: string; type: string } };
          return { status: response.status, message: error.message };
        }),
      );
      assert.deepEqual(answer, expected);
      assert.equal(expected!.status, 400);
    });
  }

  it("moved the KV cache by NIXL, by vLLM's own count", async () => {
    assert.ok((await decode.metric("vllm:nixl_bytes_transferred_sum")) > 0);
    assert.equal(await decode.metric("vllm:nixl_num_failed_transfers_total"), 0);
  });

  it("computed the prompts on prefill only", async () => {
    // Prefill wrote one token a leg; all others came from decode.
    const [prefillTokens, decodeTokens] = [
      await prefill.metric("vllm:generation_tokens_total"),
      await decode.metric("vllm:generation_tokens_total"),
    ];
    assert.ok(prefillTokens < decodeTokens / 4, `${prefillTokens} on prefill, ${decodeTokens} on decode`);
  });

  it("reports the model with its context length", async () => {
    const models = (await (await fetch(`${tandem.url}/v1/models`)).json()) as {
      data: { id: string; max_model_len: number }[];
    };
    assert.deepEqual(
      models.data.map(({ id, max_model_len }) => [id, max_model_len]),
      [[MODEL, MAX_MODEL_LEN]],
    );
  });

  it("stops generating on decode when the client leaves mid-stream", async () => {
    const before = await decode.metric("vllm:generation_tokens_total");
    const client = new AbortController();
    const response = await fetch(`${tandem.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      signal: client.signal,
      body: JSON.stringify({
        model: MODEL,
        prompt: SENTENCE,
        max_tokens: 400,
        temperature: 0,
        ignore_eos: true,
        stream: true,
      }),
    });
    await response.body!.getReader().read();
    client.abort();
    // The series move with engine steps, so both are awaited: that the request showed, and that nothing runs any more.
    const written = await eventually(
      "decode is idle again",
      async () => {
        const tokens = (await decode.metric("vllm:generation_tokens_total")) - before;
        return tokens > 0 && (await decode.metric("vllm:num_requests_running")) === 0 && tokens;
      },
      60_000,
    );
    assert.ok(written < 400, `decode wrote ${written} of 400 tokens`);
  });

  it("cuts a client that reads nothing of a long stream, and decode frees its KV", async () => {
    const written = await decode.metric("vllm:generation_tokens_total");
    // Many choices with all the log probabilities there are: more than the buffers of both sockets hold (4 MB), and so
    // much that decode is seldom at its end when the client is cut: how fast it is then is its own affair.
    const [choices, tokens] = [24, 450];
    const { path, body: long } = chat("long", "hi", true, {
      n: choices,
      temperature: 1,
      max_tokens: tokens,
      ignore_eos: true,
      logprobs: true,
      top_logprobs: 20,
    });
    const text = JSON.stringify(long);
    const { hostname, port } = new URL(tandem.url);
    const socket = connect(Number(port), hostname)
      .pause()
      .on("error", () => {});
    await once(socket, "connect");
    socket.write(
      `POST ${path} HTTP/1.1\r\nhost: ${hostname}:${port}\r\ncontent-type: application/json\r\ncontent-length: ${text.length}\r\n\r\n${text}`,
    );
    const cut = await eventually(
      "it is cut",
      async () => {
        const { receipts } = await tandemClient(tandem).router.listRequests({ limit: 1 });
        return /read next to nothing for 2000 ms/.test(receipts[0]?.error ?? "") && receipts[0];
      },
      300_000,
    );
    await eventually(
      "decode holds no KV",
      async () => {
        return (
          (await decode.metric("vllm:num_requests_running")) === 0 &&
          (await decode.metric("vllm:kv_cache_usage_perc")) === 0
        );
      },
      30_000,
    );
    const spared = choices * tokens - ((await decode.metric("vllm:generation_tokens_total")) - written);
    console.log(
      `      cut ${(cut.totalMs / 1000).toFixed(1)} s after its request, ${cut.bodyBytes} bytes written; ${spared} of ${choices * tokens} tokens were never computed`,
    );
    socket.destroy();
    const metrics = await (await fetch(`${tandem.url}/metrics`)).text();
    assert.doesNotMatch(metrics, /^tandem_breakers_open\{[^}]*\} [1-9]/m, "a slow client is no fault of decode");
    const expected = await ask(plain.url, CASES[0]!);
    await eventually("it serves", async () => (assertSame(await ask(tandem.url, CASES[0]!), expected), true), 30_000);
  });

  it("refuses smuggled KV parameters and serves the next request", async () => {
    const smuggled = `{"model":"${MODEL}","prompt":"hi","max_tokens":4,"\\u006bv_transfer_params":{"do_remote_prefill":true}}`;
    const response = await fetch(`${tandem.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: smuggled,
    });
    assert.equal(response.status, 400);
    assert.equal(((await response.json()) as { error: { param: string } }).error.param, "kv_transfer_params");
    await ask(tandem.url, CASES[0]!);
  });
});
