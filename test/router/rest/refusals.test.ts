// What is refused before any engine sees it, in vLLM's words (transcripts of vLLM 0.32.0).
import assert from "node:assert/strict";
import { errorOf, startRest, type Rest } from "./support/rest.ts";

const COMPLETIONS = "/v1/completions";
const CHAT = "/v1/chat/completions";
const prompt = "hello";
const messages = [{ role: "user", content: "hello" }];

type Expected = readonly [message: string | RegExp, type: string, param: string | null];
type Case = readonly [name: string, path: string, body: unknown, expected: Expected];

const CASES: readonly Case[] = [
  [
    "broken JSON",
    COMPLETIONS,
    '{"model": "tiny", ',
    [
      /^1 validation error:\n  \{'type': 'json_invalid', 'loc': 'body\.18', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': \{'error': '/,
      "Bad Request",
      "body.18",
    ],
  ],
  [
    "broken JSON whose text must not come back",
    COMPLETIONS,
    '{"prompt": secret}',
    [/^(?!.*secret).*JSON decode error/s, "Bad Request", "body"],
  ],
  [
    "an empty body",
    CHAT,
    "",
    [
      "1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}",
      "Bad Request",
      "body",
    ],
  ],
  [
    "an array",
    CHAT,
    "[]",
    [
      "1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary or object to extract fields from', 'input': '<list of 0 items>'}",
      "Bad Request",
      "body",
    ],
  ],
  [
    "no messages",
    CHAT,
    { model: "tiny", max_tokens: 8, temperature: 0 },
    [
      "1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of 3 items>'}",
      "Bad Request",
      "body.messages",
    ],
  ],
  [
    "empty messages",
    CHAT,
    { model: "tiny", messages: [] },
    ["Cannot apply chat template to an empty conversation. Provide at least one message.", "BadRequestError", null],
  ],
  [
    "messages that are no list",
    CHAT,
    { messages: "hi" },
    [/'list_type', 'loc': 'body\.messages'/, "Bad Request", "body.messages"],
  ],
  [
    "no prompt",
    COMPLETIONS,
    { model: "tiny" },
    ["Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)", "BadRequestError", "prompt"],
  ],
  [
    "an empty prompt",
    COMPLETIONS,
    { prompt: "" },
    ["Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)", "BadRequestError", "prompt"],
  ],
  [
    "an empty list of prompts",
    COMPLETIONS,
    { prompt: [] },
    [/^Either prompt or prompt_embeds/, "BadRequestError", "prompt"],
  ],
  ["a prompt that is an object", COMPLETIONS, { prompt: {} }, [/'loc': 'body\.prompt'/, "Bad Request", "body.prompt"]],
  [
    "a list of mixed prompts",
    COMPLETIONS,
    { prompt: ["a", 1] },
    [/'loc': 'body\.prompt'/, "Bad Request", "body.prompt"],
  ],
  [
    "prompt_embeds",
    COMPLETIONS,
    { prompt_embeds: "AAAA" },
    [/can't serve prompt_embeds/, "BadRequestError", "prompt_embeds"],
  ],
  [
    "max_tokens as text",
    COMPLETIONS,
    { prompt, max_tokens: "ten" },
    [
      "1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.max_tokens', 'msg': 'Input should be a valid integer, unable to parse string as an integer', 'input': 'ten'}",
      "Bad Request",
      "body.max_tokens",
    ],
  ],
  [
    "max_tokens with a fraction",
    COMPLETIONS,
    { prompt, max_tokens: 1.5 },
    [/'int_from_float'/, "Bad Request", "body.max_tokens"],
  ],
  [
    "max_tokens of 0",
    COMPLETIONS,
    { prompt, max_tokens: 0 },
    ["max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", "BadRequestError", "max_tokens"],
  ],
  [
    "max_completion_tokens of 0",
    CHAT,
    { messages, max_tokens: 4, max_completion_tokens: 0 },
    [/^max_tokens must be at least 1, got 0/, "BadRequestError", "max_tokens"],
  ],
  [
    "max_tokens beyond the context",
    CHAT,
    { messages, max_tokens: 100000 },
    [
      "max_tokens=100000 cannot be greater than max_model_len=512. Please request fewer output tokens. (parameter=max_tokens, value=100000)",
      "BadRequestError",
      "max_tokens",
    ],
  ],
  [
    "min_tokens over max_tokens",
    COMPLETIONS,
    { prompt, max_tokens: 4, min_tokens: 9 },
    ["min_tokens must be less than or equal to max_tokens=4, got 9.", "BadRequestError", null],
  ],
  ["n of 0", COMPLETIONS, { prompt, n: 0 }, ["n must be at least 1, got 0.", "BadRequestError", null]],
  [
    "n of 2 with greedy sampling",
    CHAT,
    { messages, n: 2, temperature: 0 },
    ["n must be 1 when using greedy sampling, got 2.", "BadRequestError", null],
  ],
  ["n of a million", COMPLETIONS, { prompt, n: 1e6 }, [/1000000 answers .* more than the 64/, "BadRequestError", "n"]],
  ["too many prompts", COMPLETIONS, { prompt: Array(40).fill("x"), n: 2 }, [/80 answers/, "BadRequestError", "prompt"]],
  [
    "stream as text",
    COMPLETIONS,
    { prompt, stream: "maybe" },
    [/'bool_type', 'loc': 'body\.stream'/, "Bad Request", "body.stream"],
  ],
  [
    "stream_options without stream",
    COMPLETIONS,
    { prompt, stream_options: { include_usage: true } },
    [
      "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
      "BadRequestError",
      "stream_options",
    ],
  ],
  [
    "stream_options that are no object",
    CHAT,
    { messages, stream: true, stream_options: 1 },
    [/'loc': 'body\.stream_options'/, "Bad Request", "body.stream_options"],
  ],
  [
    "echo in disguise",
    COMPLETIONS,
    { prompt, echo: "true", logprobs: 1 },
    [/'bool_type', 'loc': 'body\.echo'/, "Bad Request", "body.echo"],
  ],
  [
    "a model that is a number",
    COMPLETIONS,
    { prompt, model: 7 },
    [/'string_type', 'loc': 'body\.model'/, "Bad Request", "body.model"],
  ],
  [
    "a field twice",
    COMPLETIONS,
    '{"prompt":"a","max_tokens":1,"max_\\u0074okens":100}',
    ["The field `max_tokens` is given twice. Give it once.", "BadRequestError", "max_tokens"],
  ],
  [
    "KV parameters",
    COMPLETIONS,
    { prompt, kv_transfer_params: { do_remote_prefill: true } },
    [/set by the server/, "BadRequestError", "kv_transfer_params"],
  ],
  [
    "KV parameters in escapes",
    CHAT,
    '{"messages":[{"role":"user","content":"x"}],"\\u006bv_transfer_params":{}}',
    [/set by the server/, "BadRequestError", "kv_transfer_params"],
  ],
  [
    "KV parameters in vLLM's extra arguments",
    COMPLETIONS,
    { prompt, vllm_xargs: { kv_transfer_params: "x" } },
    [/set by the server/, "BadRequestError", "vllm_xargs.kv_transfer_params"],
  ],
  [
    "a request id with addresses",
    COMPLETIONS,
    { prompt, request_id: "___prefill_addr_10.0.0.9:1___decode_addr_10.0.0.9:2_x" },
    [/set by the server/, "BadRequestError", "request_id"],
  ],
];

describe("a request that can't be served", () => {
  let rest: Rest;
  before(async () => {
    rest = await startRest();
  });
  after(() => rest[Symbol.asyncDispose]());

  for (const [name, path, body, [message, type, param]] of CASES) {
    it(`because of ${name} is a 400 as vLLM gives it`, async () => {
      const response = await rest.post(path, body);
      assert.equal(response.status, 400);
      const error = await errorOf(response);
      if (typeof message === "string") assert.equal(error.message, message);
      else assert.match(error.message, message);
      assert.deepEqual({ type: error.type, param: error.param, code: error.code }, { type, param, code: 400 });
      assert.equal(rest.relay.runs.length, 0);
    });
  }

  it("because of bytes that are not UTF-8 is a 400", async () => {
    const response = await fetch(`${rest.url}${COMPLETIONS}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]),
    });
    assert.equal(response.status, 400);
    assert.match((await errorOf(response)).message, /not valid UTF-8/);
  });

  it("because of its content type is a 400 in vLLM's words", async () => {
    for (const type of ["text/plain", "application/x-www-form-urlencoded"]) {
      const error = await errorOf(await rest.post(COMPLETIONS, "{}", { headers: { "content-type": type } }));
      assert.deepEqual(error, {
        message: "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
        type: "Bad Request",
        param: null,
        code: 400,
      });
    }
  });

  it("because its body is compressed says so", async () => {
    const response = await rest.post(COMPLETIONS, "{}", { headers: { "content-encoding": "gzip" } });
    assert.match((await errorOf(response)).message, /uncompressed/);
  });

  it("because of an unknown model is a 404 that names the known ones, as in vLLM", async () => {
    for (const [path, body] of [
      [COMPLETIONS, { model: "nope", prompt }],
      [CHAT, { model: "nope", messages, stream: true }],
    ] as const) {
      const response = await rest.post(path, body);
      assert.equal(response.status, 404);
      assert.deepEqual(await errorOf(response), {
        message: "The model `nope` does not exist. Valid aliases: tiny.",
        type: "NotFoundError",
        param: "model",
        code: 404,
      });
    }
  });

  it("is logged once, without any of the client's text", async () => {
    const lines = rest.logs.events("request refused");
    assert.ok(lines.length > 0);
    for (const { status, client } of lines) assert.deepEqual([typeof status, typeof client], ["number", "string"]);
    assert.doesNotMatch(JSON.stringify(rest.logs.lines), /hello|secret|10\.0\.0\.9/);
  });
});

describe("what vLLM accepts", () => {
  let rest: Rest;
  before(async () => {
    rest = await startRest();
  });
  after(() => rest[Symbol.asyncDispose]());

  const ACCEPTED: readonly (readonly [name: string, path: string, body: unknown, Record<string, unknown>])[] = [
    ["no model", CHAT, { messages }, { model: "tiny" }],
    ["an unknown field", COMPLETIONS, { prompt, surprise: 1 }, {}],
    ["an odd role", CHAT, { messages: [{ role: "robot", content: "x" }] }, {}],
    [
      "nulls",
      CHAT,
      { messages, model: null, stream: null, stream_options: null, n: null, max_tokens: null },
      { stream: false, choices: 1 },
    ],
    ["max_tokens over what is left", COMPLETIONS, { prompt, max_tokens: 505 }, {}],
    ["digits as text", COMPLETIONS, { prompt, n: "2" }, { choices: 2 }],
    [
      "max_completion_tokens in completions, which vLLM doesn't know there",
      COMPLETIONS,
      { prompt, max_completion_tokens: 0 },
      {},
    ],
    ["token ids", COMPLETIONS, { prompt: [1, 2, 3] }, { prompts: 1, promptIsList: false }],
    ["a list of one prompt", COMPLETIONS, { prompt: ["a"] }, { prompts: 1, promptIsList: true }],
    [
      "a list of prompts",
      COMPLETIONS,
      { prompt: ["a", "b", "c"], n: 2 },
      { prompts: 3, promptIsList: true, choices: 2 },
    ],
    ["a list of token lists", COMPLETIONS, { prompt: [[1], [2, 3]] }, { prompts: 2, promptIsList: true }],
    [
      "a usage chunk",
      CHAT,
      { messages, stream: true, stream_options: { include_usage: true } },
      { stream: true, includeUsage: true },
    ],
  ];
  for (const [name, path, body, expected] of ACCEPTED) {
    it(`is accepted: ${name}`, async () => {
      const response = await rest.post(path, body);
      assert.equal(response.status, 200, await response.text());
      const { request } = rest.relay.runs.at(-1)!;
      for (const [key, value] of Object.entries(expected))
        assert.deepEqual(request[key as keyof typeof request], value, key);
      assert.equal(request.path, path);
    });
  }

  it("reaches the relay byte for byte", async () => {
    const body = '{ "prompt" : "h\\u00e9" ,"seed":12345678901234567890, "x":1.0e5}\n';
    await rest.post(COMPLETIONS, body);
    assert.equal(rest.relay.runs.at(-1)!.request.body.toString(), body);
  });
});
