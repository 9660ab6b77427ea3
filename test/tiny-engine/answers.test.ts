import assert from "node:assert/strict";
import type { RunningEngine } from "../../services/tiny-engine/server.ts";
import { complete, events, post, startFast, streamedText, textOf } from "./client.ts";

const PROMPT = "Tell me a story about the river.";

describe("the sim's answers", () => {
  let engine: RunningEngine;
  before(async () => {
    engine = await startFast();
  });
  after(() => engine[Symbol.asyncDispose]());

  it("say at once that they are simulated, and name words of the prompt", async () => {
    const text = await textOf(
      post(engine, "/v1/chat/completions", {
        messages: [{ role: "user", content: "Where is the lighthouse?" }],
        temperature: 0,
      }),
    );
    assert.match(text, /^\(simulated\) You said /);
    assert.match(text, /lighthouse|Where|the/);
  });

  it("are the same for the same prompt and differ for another", async () => {
    const first = await textOf(complete(engine, PROMPT));
    assert.equal(await textOf(complete(engine, PROMPT)), first);
    assert.notEqual(await textOf(complete(engine, `${PROMPT} `)), first);
  });

  it("differ between models that differ in their weights alone", async () => {
    await using other = await startFast({ hashSalt: "b" });
    assert.notEqual(await textOf(complete(other, PROMPT)), await textOf(complete(engine, PROMPT)));
  });

  it("end by themselves, sooner or later, for every prompt", async () => {
    const lengths = await Promise.all(
      Array.from({ length: 40 }, async (_, index) => {
        const { json } = await complete(engine, `prompt number ${index}`, { max_tokens: 2000 });
        assert.equal(json.choices[0].finish_reason, "stop");
        return json.usage.completion_tokens as number;
      }),
    );
    assert.ok(
      Math.min(...lengths) >= 16 && Math.max(...lengths) <= 230,
      `${Math.min(...lengths)}..${Math.max(...lengths)}`,
    );
    assert.ok(new Set(lengths).size > 10);
  });

  it("go on past their end with ignore_eos, and to min_tokens", async () => {
    assert.equal(
      (await complete(engine, PROMPT, { max_tokens: 600, ignore_eos: true })).json.usage.completion_tokens,
      600,
    );
    assert.ok(
      (await complete(engine, PROMPT, { max_tokens: 900, min_tokens: 500 })).json.usage.completion_tokens >= 500,
    );
  });

  it("follow the seed: choice i of n is what seed + i alone gives", async () => {
    const { json } = await complete(engine, PROMPT, { temperature: 1, seed: 7, n: 3 });
    const texts = json.choices.map((choice: { text: string }) => choice.text);
    assert.equal(new Set(texts).size, 3);
    assert.equal(await textOf(complete(engine, PROMPT, { temperature: 1, seed: 9 })), texts[2]);
  });

  it("are random with a temperature and no seed", async () => {
    const texts = await Promise.all(
      Array.from({ length: 5 }, () => textOf(complete(engine, PROMPT, { temperature: 1 }))),
    );
    assert.ok(new Set(texts).size > 1);
  });

  it("are the same text streamed and not", async () => {
    const { events: list } = await events(engine, "/v1/completions", {
      prompt: PROMPT,
      temperature: 0,
      max_tokens: 24,
    });
    assert.equal(streamedText(list), await textOf(complete(engine, PROMPT)));
    assert.equal(list.at(-1), "[DONE]");
  });

  it("stop at a stop string that begins in one token and ends in another", async () => {
    const text = await textOf(complete(engine, PROMPT, { max_tokens: 60 }));
    const at = text.indexOf(". ");
    const stop = text.slice(at - 3, at + 4);
    const { json } = await complete(engine, PROMPT, { max_tokens: 60, stop: [stop] });
    assert.equal(json.choices[0].text, text.slice(0, at - 3));
    assert.deepEqual([json.choices[0].finish_reason, json.choices[0].stop_reason], ["stop", stop]);
    const streamed = await events(engine, "/v1/completions", { prompt: PROMPT, temperature: 0, max_tokens: 60, stop });
    assert.equal(streamedText(streamed.events), text.slice(0, at - 3));
    const included = await complete(engine, PROMPT, { max_tokens: 60, stop, include_stop_str_in_output: true });
    assert.equal(included.json.choices[0].text, text.slice(0, at + 4));
  });

  it("stop at a stop token and name it", async () => {
    const { json } = await complete(engine, PROMPT, { return_token_ids: true });
    const fifth = json.choices[0].token_ids[4];
    const stopped = (await complete(engine, PROMPT, { stop_token_ids: [fifth], return_token_ids: true })).json
      .choices[0];
    assert.deepEqual([stopped.finish_reason, stopped.stop_reason, stopped.token_ids.length], ["stop", fifth, 5]);
    assert.ok(json.choices[0].text.startsWith(stopped.text));
  });

  it("take prompts as strings, token ids and lists of either, and index their choices", async () => {
    const { json: tokenized } = await post(engine, "/tokenize", { prompt: "the sea" });
    const both = await complete(engine, ["the sea", "the sun"], { temperature: 1, seed: 1, n: 2 });
    assert.deepEqual(
      both.json.choices.map((choice: { index: number }) => choice.index),
      [0, 1, 2, 3],
    );
    const [byText, byIds, byLists] = await Promise.all([
      complete(engine, "the sea"),
      complete(engine, tokenized.tokens),
      complete(engine, [tokenized.tokens]),
    ]);
    assert.equal(byIds!.json.choices[0].text, byText!.json.choices[0].text);
    assert.equal(byLists!.json.choices[0].text, byText!.json.choices[0].text);
  });

  it("echo the prompt before the text", async () => {
    const plain = await textOf(complete(engine, PROMPT));
    assert.equal(await textOf(complete(engine, PROMPT, { echo: true })), PROMPT + plain);
  });

  it("never split a character that takes several tokens", async () => {
    const messages = [{ role: "user", content: "Скажи мне что-нибудь 🌊🌊🌊" }];
    const plain = await textOf(post(engine, "/v1/chat/completions", { messages, temperature: 0 }));
    const { events: list } = await events(engine, "/v1/chat/completions", { messages, temperature: 0 });
    assert.equal(streamedText(list), plain);
    assert.ok(!plain.includes("\ufffd"));
    assert.match(plain, /[а-я]{3}/i);
  });

  it("count usage as one engine would: prompts once, choices each", async () => {
    const { json } = await complete(engine, ["one", "two"], { temperature: 1, seed: 1, n: 2, max_tokens: 5 });
    assert.equal(json.usage.completion_tokens, 20);
    assert.equal(json.usage.total_tokens, json.usage.prompt_tokens + 20);
  });
});
