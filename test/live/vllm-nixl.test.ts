// The main job on real input: prompts through Tandem into two real vLLM processes, the KV moved by NIXL between them,
// and the answers equal to those of one plain vLLM.
import assert from "node:assert/strict";
import { startTandem, type Tandem } from "../support/tandem.ts";
import { eventually } from "../support/waits.ts";
import { ask, assertSame, type Question } from "./support/answers.ts";
import { MAX_MODEL_LEN, MODEL, prepareVllm, startVllm, type Vllm } from "./support/vllm.ts";

const SENTENCE = "Hello world, tell me a story about the sea. ";

// 20 prompts, from one token to most of the context, over block borders (32 tokens a block).
const CASES: readonly Question[] = [
  ...[1, 2, 3, 5, 8, 12, 20].map((count, index) => completion(`completion, ${count} sentences`, SENTENCE.repeat(count), index % 2 === 0)),
  ...[1, 2, 4, 7, 11, 18].map((count, index) => chat(`chat, ${count} sentences`, SENTENCE.repeat(count), index % 2 === 0)),
  completion("completion of one character", "a", true),
  completion("completion of token ids", [1, 277, 82, 224, 311, 297, 15, 262, 268, 273, 72, 260, 313], false),
  completion("completion of two prompts", [SENTENCE.repeat(2), `prefill and decode ${SENTENCE}`], false),
  completion("completion of two prompts, streamed", [SENTENCE.repeat(3), `decode and prefill ${SENTENCE}`], true),
  completion("three seeded choices", SENTENCE.repeat(3), false, { n: 3, temperature: 1, seed: 7 }),
  chat("two seeded choices, streamed", SENTENCE.repeat(2), true, { n: 2, temperature: 1, seed: 11 }),
  chat("chat with logprobs", SENTENCE.repeat(2), false, { logprobs: true, top_logprobs: 2 }),
];

function completion(name: string, prompt: unknown, stream: boolean, extra: Record<string, unknown> = {}): Question {
  return { name, path: "/v1/completions", body: body({ prompt, ...extra }, stream) };
}

function chat(name: string, content: string, stream: boolean, extra: Record<string, unknown> = {}): Question {
  return { name, path: "/v1/chat/completions", body: body({ messages: [{ role: "user", content }], ...extra }, stream) };
}

function body(fields: Record<string, unknown>, stream: boolean): Record<string, unknown> {
  return {
    model: MODEL, max_tokens: 24, temperature: 0, ...fields,
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
    [plain, prefill, decode] = await Promise.all([startVllm("plain"), startVllm("prefill"), startVllm("decode")]);
    tandem = await startTandem(["--attach-prefill", prefill.url, "--attach-decode", decode.url, "--connector", "nixl"]);
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
    const models = (await (await fetch(`${tandem.url}/v1/models`)).json()) as { data: { id: string; max_model_len: number }[] };
    assert.deepEqual(models.data.map(({ id, max_model_len }) => [id, max_model_len]), [[MODEL, MAX_MODEL_LEN]]);
  });

  it("stops generating on decode when the client leaves mid-stream", async () => {
    const before = await decode.metric("vllm:generation_tokens_total");
    const client = new AbortController();
    const response = await fetch(`${tandem.url}/v1/completions`, {
      method: "POST", headers: { "content-type": "application/json" }, signal: client.signal,
      body: JSON.stringify({ model: MODEL, prompt: SENTENCE, max_tokens: 400, temperature: 0, ignore_eos: true, stream: true }),
    });
    await response.body!.getReader().read();
    client.abort();
    // The series move with engine steps, so both are awaited: that the request showed, and that nothing runs any more.
    const written = await eventually("decode is idle again", async () => {
      const tokens = (await decode.metric("vllm:generation_tokens_total")) - before;
      return tokens > 0 && (await decode.metric("vllm:num_requests_running")) === 0 && tokens;
    }, 60_000);
    assert.ok(written < 400, `decode wrote ${written} of 400 tokens`);
  });

  it("refuses smuggled KV parameters and serves the next request", async () => {
    const smuggled = `{"model":"${MODEL}","prompt":"hi","max_tokens":4,"\\u006bv_transfer_params":{"do_remote_prefill":true}}`;
    const response = await fetch(`${tandem.url}/v1/completions`, {
      method: "POST", headers: { "content-type": "application/json" }, body: smuggled,
    });
    assert.equal(response.status, 400);
    assert.equal(((await response.json()) as { error: { param: string } }).error.param, "kv_transfer_params");
    await ask(tandem.url, CASES[0]!);
  });
});
