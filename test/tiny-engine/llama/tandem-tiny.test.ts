// The model that ships, in the engine that ships: what it was trained to say is what comes out, alone and in two processes'
// worth of engines. All wordings with CI=true, a sample otherwise.
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import type { RunningEngine } from "../../../services/tiny-engine/serve-engine.ts";
import { skip } from "../../support/skip.ts";
import { complete, pairedId, post } from "../client.ts";
import { startPair, startTiny, type Pair } from "./engines.ts";

const FOLDER = new URL("../../../models/tandem-tiny/", import.meta.url);
const MODEL = new URL("tandem-tiny-q8_0.gguf", FOLDER);
const read = <T>(name: string): T => JSON.parse(readFileSync(new URL(name, FOLDER), "utf8")) as T;

interface Golden {
  readonly prompts: readonly {
    readonly kind: string;
    readonly text: string;
    readonly prompt: number[];
    readonly greedy: number[];
    readonly margins: number[];
  }[];
}

/** Two logits closer than this may change places with the rounding of 16-bit activations. */
const NEAR_TIE = 0.1;
const AT_ONCE = 8;
const SAMPLE = 48;

const chatBody = (text: string, more: object): object => ({
  messages: [{ role: "user", content: text }],
  max_tokens: 250,
  ...more,
});

async function answerOf(
  engine: RunningEngine,
  body: object,
  headers: Readonly<Record<string, string>> = {},
): Promise<string> {
  const { status, json } = await post(engine, "/v1/chat/completions", body, headers);
  assert.equal(status, 200, JSON.stringify(json));
  return json.choices[0].message.content;
}

async function disaggregated(pair: Pair, body: object): Promise<string> {
  const headers = { "x-request-id": pairedId(pair.prefill, pair.decode) };
  await post(pair.prefill, "/v1/chat/completions", { ...body, max_tokens: 1 }, headers);
  return answerOf(pair.decode, body, headers);
}

/** Runs `work` on every item, so many at a time. */
async function inBatches<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  for (let at = 0; at < items.length; at += AT_ONCE)
    results.push(...(await Promise.all(items.slice(at, at + AT_ONCE).map(work))));
  return results;
}

describe("the model that ships", function () {
  this.timeout(process.env["CI"] === "true" ? 3_600_000 : 120_000);
  let engine: RunningEngine;
  let pair: Pair;
  before(async function () {
    if (!existsSync(MODEL)) skip(this, "models/tandem-tiny has no GGUF file");
    const file = readFileSync(MODEL);
    engine = await startTiny({ model: file });
    pair = await startPair({ model: file }, { model: file });
  });
  after(async () => {
    await engine?.[Symbol.asyncDispose]();
    await pair?.[Symbol.asyncDispose]();
  });

  it("reads prompts and writes tokens as the program that trained it does", async () => {
    for (const { kind, text, prompt, greedy, margins } of read<Golden>("golden.json").prompts) {
      if (kind === "chat") {
        const { json } = await post(engine, "/tokenize", { messages: [{ role: "user", content: text }] });
        assert.deepEqual(json.tokens, prompt, text);
      }
      const { json } = await complete(engine, prompt, {
        max_tokens: greedy.length,
        ignore_eos: true,
        return_token_ids: true,
      });
      const tie = margins.findIndex((margin) => margin < NEAR_TIE);
      const sure = tie === -1 ? greedy.length : tie;
      assert.deepEqual(
        json.choices[0].token_ids.slice(0, sure),
        greedy.slice(0, sure),
        `${kind}: ${text.slice(0, 60)}`,
      );
    }
  });

  it("answers its questions as trained, the same in one engine and in two, greedy and seeded, eight at once", async () => {
    const answers = read<Record<string, string>>("answers.json");
    const all = read<{ answer: string; text: string }[]>("wordings.json");
    const wordings =
      process.env["CI"] === "true" ? all : all.filter((_, index) => index % Math.ceil(all.length / SAMPLE) === 0);
    const greedy = (text: string): object => chatBody(text, { temperature: 0 });
    const seeded = (text: string): object => chatBody(text, { temperature: 1, seed: text.length });
    // Each engine has a thread of its own, and two cores halve the minutes that all wordings take.
    const both = (body: (text: string) => object): Promise<[string[], string[]]> =>
      Promise.all([
        inBatches(wordings, ({ text }) => answerOf(engine, body(text))),
        inBatches(wordings, ({ text }) => disaggregated(pair, body(text))),
      ]);
    const [alone, apart] = await both(greedy);
    assert.deepEqual(apart, alone);
    assert.deepEqual(
      wordings.filter(({ answer }, index) => answers[answer] !== alone[index]).map(({ text }) => text),
      [],
    );
    const [seededAlone, seededApart] = await both(seeded);
    assert.deepEqual(seededApart, seededAlone);
    assert.deepEqual([pair.decode.state().kv_held, pair.decode.state().kv_tokens], [[], 0]);
  });

  it("answers the same one at a time as eight at once", async () => {
    const texts = read<{ text: string }[]>("held-out.json")
      .slice(0, AT_ONCE)
      .map(({ text }) => text);
    const together = await inBatches(texts, (text) => answerOf(engine, chatBody(text, { temperature: 0 })));
    for (const [index, text] of texts.entries())
      assert.equal(await answerOf(engine, chatBody(text, { temperature: 0 })), together[index]);
  });
});
