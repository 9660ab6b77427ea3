// The OpenAI SDK for Node against `tandem up`, with sim engines behind it.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { startTandem, type Tandem } from "../support/tandem.ts";

describe("openai-node", function () {
  this.timeout(60_000);
  let tandem: Tandem;
  let client: OpenAI;
  let model: string;

  before(async () => {
    tandem = await startTandem([]);
    client = new OpenAI({ baseURL: `${tandem.url}/v1`, apiKey: "unused", maxRetries: 0 });
    model = (await client.models.list()).data[0]!.id;
  });
  after(() => tandem?.[Symbol.asyncDispose]());

  const messages = [{ role: "user" as const, content: "What is disaggregated prefill?" }];

  it("chats, and the streamed answer is the same", async () => {
    const whole = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 40 });
    const text = whole.choices[0]!.message.content!;
    assert.ok(text.length > 0);
    assert.match(whole.id, /^chatcmpl-/);
    assert.equal(whole.usage!.total_tokens, whole.usage!.prompt_tokens + whole.usage!.completion_tokens);
    const stream = await client.chat.completions.create({
      model,
      messages,
      temperature: 0,
      max_tokens: 40,
      stream: true,
      stream_options: { include_usage: true },
    });
    let streamed = "";
    let usage: OpenAI.CompletionUsage | null | undefined;
    const ids = new Set<string>();
    for await (const chunk of stream) {
      streamed += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
      ids.add(chunk.id);
    }
    assert.equal(streamed, text);
    assert.equal(usage!.total_tokens, whole.usage!.total_tokens);
    assert.equal(ids.size, 1);
  });

  it("completes, and the streamed answer is the same", async () => {
    const request = { model, prompt: "Prefill and decode", temperature: 0, max_tokens: 20 };
    const whole = await client.completions.create(request);
    let streamed = "";
    for await (const chunk of await client.completions.create({ ...request, stream: true })) {
      streamed += chunk.choices[0]?.text ?? "";
    }
    assert.equal(streamed, whole.choices[0]!.text);
  });

  it("gives n choices of a seeded prompt in order, streamed or not", async () => {
    const request = { model, messages, n: 3, seed: 7, temperature: 1, max_tokens: 12 };
    const whole = await client.chat.completions.create(request);
    assert.deepEqual(
      whole.choices.map((choice) => choice.index),
      [0, 1, 2],
    );
    const streamed = ["", "", ""];
    for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) {
      for (const choice of chunk.choices) streamed[choice.index] += choice.delta.content ?? "";
    }
    assert.deepEqual(
      streamed,
      whole.choices.map((choice) => choice.message.content),
    );
  });

  it("gets a typed error for an unknown model, which names those there are", async () => {
    await assert.rejects(client.chat.completions.create({ model: "nope", messages }), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.match(error.message, new RegExp(model));
      return true;
    });
  });

  it("is refused without the right key, in the form that it understands", async () => {
    await using locked = await startTandem(["--api-key", "sk-right"]);
    const wrong = new OpenAI({ baseURL: `${locked.url}/v1`, apiKey: "sk-wrong", maxRetries: 0 });
    await assert.rejects(wrong.models.list(), OpenAI.AuthenticationError);
    const right = new OpenAI({ baseURL: `${locked.url}/v1`, apiKey: "sk-right", maxRetries: 0 });
    assert.equal((await right.models.list()).data.length, 1);
  });
});
