// The model that ships through router, prefill and decode, as `npm start` runs it, against the same engine run alone.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { shippedModel } from "../../services/common/package-file.ts";
import type { RunningEngine } from "../../services/tiny-engine/serve-engine.ts";
import { startLlamaEngine } from "../../services/tiny-engine/llama/start-llama-engine.ts";
import { skip } from "../support/skip.ts";
import { startTandem, type Tandem } from "../support/tandem.ts";

/** F32 keys and values of 6 layers, 2 heads of 32. */
const KV_BYTES_PER_TOKEN = 6 * 2 * 2 * 32 * 4;

const QUESTIONS = [
  "What is Tandem?",
  "What is TTFT?",
  "How do I drain an instance?",
  "what does kv_transfer_failed mean",
  "Who painted the Night Watch?",
  "Why are prefill and decode separate?",
  "What is NIXL?",
  "How do I start it?",
];

interface Asked {
  readonly text: string;
  readonly promptTokens: number;
  readonly requestId: string;
}

async function ask(url: string, content: string, more: object): Promise<Asked> {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "tandem-tiny", messages: [{ role: "user", content }], max_tokens: 120, ...more }),
  });
  const body = await response.text();
  assert.equal(response.status, 200, body);
  const json = JSON.parse(body) as { choices: { message: { content: string } }[]; usage: { prompt_tokens: number } };
  return {
    text: json.choices[0]!.message.content,
    promptTokens: json.usage.prompt_tokens,
    requestId: response.headers.get("x-request-id")!,
  };
}

describe("tandem up with the model that ships", function () {
  this.timeout(60_000);
  let tandem: Tandem;
  let alone: RunningEngine;
  before(async function () {
    const model = shippedModel();
    if (model === undefined) skip(this, "models/tandem-tiny has no GGUF file");
    tandem = await startTandem(["--engine", "embedded"]);
    alone = await startLlamaEngine({ model });
  });
  after(async () => {
    await tandem?.[Symbol.asyncDispose]();
    await alone?.[Symbol.asyncDispose]();
  });

  for (const [name, how] of [
    ["greedy", { temperature: 0 }],
    ["seeded", { temperature: 1, seed: 3 }],
  ] as const) {
    it(`gives, ${name} and eight at once, the answers of one engine alone`, async () => {
      const answers = await Promise.all(QUESTIONS.map((question) => ask(tandem.url, question, how)));
      const expected = await Promise.all(QUESTIONS.map((question) => ask(alone.url, question, how)));
      assert.deepEqual(
        answers.map(({ text }) => text),
        expected.map(({ text }) => text),
      );
    });
  }

  it("answers its questions as trained, eight at once: every wording in CI, some elsewhere", async function () {
    this.timeout(30 * 60_000);
    const read = (file: string): unknown =>
      JSON.parse(readFileSync(new URL(`../../models/tandem-tiny/${file}`, import.meta.url), "utf8"));
    const answers = read("answers.json") as Record<string, string>;
    const all = read("wordings.json") as { answer: string; text: string }[];
    const wordings = process.env["CI"] === "true" ? all : all.filter((_, index) => index % 100 === 0);
    const wrong: string[] = [];
    let next = 0;
    const askOn = async (): Promise<void> => {
      for (let wording = wordings[next++]; wording !== undefined; wording = wordings[next++]) {
        const { text } = await ask(tandem.url, wording.text, { temperature: 0, max_tokens: 300 });
        if (text !== answers[wording.answer]) wrong.push(wording.text);
      }
    };
    await Promise.all(Array.from({ length: 8 }, askOn));
    assert.deepEqual(wrong, []);
  });

  it("gives every choice of n > 1, and long prompts, as one engine does", async () => {
    const long = `${"Tandem serves large language models. ".repeat(80)}What is Tandem?`;
    assert.equal(
      (await ask(tandem.url, long, { temperature: 0 })).text,
      (await ask(alone.url, long, { temperature: 0 })).text,
    );
    const texts = async (url: string): Promise<string[]> => {
      const response = await fetch(`${url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({
          model: "tandem-tiny",
          prompt: ["Prefill", "Decode and"],
          n: 2,
          temperature: 1,
          seed: 5,
          max_tokens: 20,
        }),
      });
      return ((await response.json()) as { choices: { text: string }[] }).choices.map(({ text }) => text);
    };
    assert.deepEqual(await texts(tandem.url), await texts(alone.url));
  });

  it("says in the receipt how many bytes of KV moved", async () => {
    const { promptTokens, requestId } = await ask(tandem.url, "What is Tandem?", { temperature: 0 });
    const response = await fetch(`${tandem.url}/tandem.router.v1.RouterService/GetReceipt`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${tandem.token}` },
      body: JSON.stringify({ requestId }),
    });
    const { receipt } = (await response.json()) as { receipt: { legs: { kvBytes: string }[] } };
    assert.equal(Number(receipt.legs[0]!.kvBytes), promptTokens * KV_BYTES_PER_TOKEN);
  });

  it("refuses what the engine can't do with its reason, and goes on", async () => {
    const response = await fetch(`${tandem.url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        model: "tandem-tiny",
        messages: [{ role: "user", content: "hi" }],
        response_format: { type: "json_object" },
      }),
    });
    assert.equal(response.status, 400);
    assert.match(await response.text(), /structured outputs/);
    assert.ok((await ask(tandem.url, "What is Tandem?", { temperature: 0 })).text.length > 0);
  });
});
