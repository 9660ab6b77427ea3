import assert from "node:assert/strict";
import type { RunningEngine } from "../../../services/tiny-engine/serve-engine.ts";
import { eventually } from "../../support/waits.ts";
import { complete, pairedId, post, type Answered } from "../client.ts";
import { startPair, startTiny, tinyFile, tokensOf, type Pair } from "./engines.ts";

const GREEDY = { temperature: 0, max_tokens: 12, ignore_eos: true, return_token_ids: true };
const SEEDED = { ...GREEDY, temperature: 1, top_p: 0.95, seed: 7, repetition_penalty: 1.1 };

async function tokensFrom(answer: Promise<Answered>): Promise<number[]> {
  const { status, json } = await answer;
  assert.equal(status, 200, JSON.stringify(json));
  return json.choices[0].token_ids;
}

/** The tokens of one answer through both engines of a pair. */
async function disaggregated(
  pair: Pair,
  prompt: readonly number[],
  how: Readonly<Record<string, unknown>>,
): Promise<number[]> {
  const headers = { "x-request-id": pairedId(pair.prefill, pair.decode) };
  const first = await complete(pair.prefill, prompt, { ...how, max_tokens: 1 }, headers);
  assert.equal(first.status, 200, JSON.stringify(first.json));
  return tokensFrom(complete(pair.decode, prompt, how, headers));
}

const alone = (
  engine: RunningEngine,
  prompt: readonly number[],
  how: Readonly<Record<string, unknown>>,
): Promise<number[]> => tokensFrom(complete(engine, prompt, how));

describe("a prompt prefilled in one engine and answered by another", () => {
  for (const [name, how] of [
    ["greedy", GREEDY],
    ["seeded", SEEDED],
  ] as const) {
    it(`gives the tokens of one engine that does both, ${name}, at every border of a KV block`, async () => {
      await using pair = await startPair();
      await using engine = await startTiny();
      for (const length of [1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 250, 1000]) {
        const prompt = tokensOf(length);
        assert.deepEqual(await disaggregated(pair, prompt, how), await alone(engine, prompt, how), `${length} tokens`);
      }
      assert.deepEqual(
        [pair.decode.state().kv_held, pair.decode.state().kv_tokens, pair.prefill.state().kv_tokens],
        [[], 0, 0],
      );
    });

    it(`gives the same tokens, ${name}, with eight prompts at once`, async () => {
      await using pair = await startPair();
      await using engine = await startTiny();
      const prompts = [3, 16, 17, 40, 100, 333, 500, 1000].map((length, index) => tokensOf(length, index + 2));
      const expected: number[][] = [];
      for (const prompt of prompts) expected.push(await alone(engine, prompt, how));
      assert.deepEqual(await Promise.all(prompts.map((prompt) => disaggregated(pair, prompt, how))), expected);
      assert.deepEqual(await Promise.all(prompts.map((prompt) => alone(engine, prompt, how))), expected);
    });
  }

  it("moves the KV of every prompt token, and reports the number of bytes", async () => {
    await using pair = await startPair();
    const headers = { "x-request-id": pairedId(pair.prefill, pair.decode) };
    const { json } = await complete(pair.prefill, tokensOf(33), { ...GREEDY, max_tokens: 1 }, headers);
    // 2 layers, keys and values, 2 heads of 16 floats.
    assert.deepEqual(json.kv_transfer_params, { kv_bytes: 33 * 2 * 2 * 2 * 16 * 4 });
    assert.equal(pair.decode.state().kv_received_bytes, json.kv_transfer_params.kv_bytes);
  });

  it("sends blocks while the rest of the prompt is still computed", async () => {
    await using pair = await startPair();
    const headers = { "x-request-id": pairedId(pair.prefill, pair.decode) };
    const prefilled = complete(pair.prefill, tokensOf(1100), { ...GREEDY, max_tokens: 1 }, headers);
    const part = await eventually("blocks of an unfinished prompt", () =>
      pair.decode.state().kv_held.find(({ stage, bytes }) => stage === "filling" && bytes > 0),
    );
    assert.ok(part.bytes < 1100 * 512, `${part.bytes} bytes`);
    await prefilled;
  });

  it("works for chat", async () => {
    await using pair = await startPair();
    await using engine = await startTiny();
    const body = {
      messages: [{ role: "user", content: "How deep is the sea?" }],
      seed: 5,
      max_tokens: 20,
      ignore_eos: true,
    };
    const headers = { "x-request-id": pairedId(pair.prefill, pair.decode) };
    await post(pair.prefill, "/v1/chat/completions", { ...body, max_tokens: 1 }, headers);
    const answer = await post(pair.decode, "/v1/chat/completions", body, headers);
    const expected = await post(engine, "/v1/chat/completions", body);
    assert.equal(answer.json.choices[0].message.content, expected.json.choices[0].message.content);
  });
});

describe("KV of other weights", () => {
  it("is refused before it touches the decode engine", async () => {
    await using pair = await startPair({ model: tinyFile(4) });
    const headers = { "x-request-id": pairedId(pair.prefill, pair.decode) };
    const { status, json } = await complete(pair.prefill, tokensOf(40), { max_tokens: 1 }, headers);
    assert.equal(status, 500);
    assert.match(json.error.message, /^kv_refused: wrong_model/);
    assert.deepEqual(
      [pair.decode.state().kv_received_bytes, pair.decode.state().kv_tokens, pair.prefill.state().kv_tokens],
      [0, 0, 0],
    );
  });

  it("gives another text when the prefill engine lies about its hash, so the answer comes from the KV", async () => {
    await using engine = await startTiny();
    await using pair = await startPair({ model: tinyFile(4), claimedHash: engine.state().model_hash });
    const prompt = tokensOf(40);
    assert.notDeepEqual(await disaggregated(pair, prompt, GREEDY), await alone(engine, prompt, GREEDY));
  });

  it("is refused when a block arrives damaged", async () => {
    await using pair = await startPair({ faults: ["corrupt-kv:count=1"] });
    const headers = { "x-request-id": pairedId(pair.prefill, pair.decode) };
    const { json } = await complete(pair.prefill, tokensOf(40), { max_tokens: 1 }, headers);
    assert.match(json.error.message, /bad_checksum/);
    assert.equal(pair.decode.state().kv_tokens, 0);
  });
});

describe("room for KV", () => {
  it("is kept for a pushed prompt until its request comes, and refused when none is left", async () => {
    await using pair = await startPair({}, { kvTokenLimit: 1200 });
    const headers = { "x-request-id": pairedId(pair.prefill, pair.decode) };
    await complete(pair.prefill, tokensOf(20), { ...GREEDY, max_tokens: 1 }, headers);
    const second = await complete(
      pair.prefill,
      tokensOf(20),
      { max_tokens: 1 },
      { "x-request-id": pairedId(pair.prefill, pair.decode) },
    );
    assert.deepEqual([second.status, second.json.error.message.includes("no_slots")], [503, true]);
    assert.equal((await tokensFrom(complete(pair.decode, tokensOf(20), GREEDY, headers))).length, 12);
    assert.equal(pair.decode.state().kv_tokens, 0);
  });

  it("is free again after a client left, in the middle of its prompt and of its answer", async () => {
    // Slow enough to be met while it runs, however fast the machine.
    await using engine = await startTiny({ faults: ["slow:extra_ms=100"] });
    for (const prompt of [tokensOf(1000), tokensOf(5)]) {
      const client = new AbortController();
      const outcome = engine.nextOutcome();
      const asked = post(
        engine,
        "/v1/completions",
        { prompt, max_tokens: 150, temperature: 0, ignore_eos: true, stream: true },
        {},
        client.signal,
      );
      asked.catch(() => {});
      await eventually("the request to run", () => engine.state().running === 1);
      client.abort();
      assert.equal(await outcome, "aborted");
      assert.deepEqual([engine.state().running, engine.state().kv_tokens], [0, 0]);
    }
  });

  it("makes requests wait in order instead of starting without it", async () => {
    await using engine = await startTiny({ kvTokenLimit: 1200 });
    const prompt = tokensOf(500);
    const answers = await Promise.all([1, 2, 3, 4].map(() => alone(engine, prompt, GREEDY)));
    assert.deepEqual(answers.slice(1), answers.slice(0, 3));
    assert.equal(engine.state().kv_tokens, 0);
  });
});
