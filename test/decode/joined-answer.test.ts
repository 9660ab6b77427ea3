import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { scanObject } from "../../services/common/json-body.ts";
import { AnswerShape, OWN_SHAPES } from "../../services/decode/answer-shape.ts";
import { JoinedAnswer } from "../../services/decode/joined-answer.ts";
import { wholeOnly } from "../../services/decode/whole-only.ts";
import { EventSplitter } from "../../services/engine/sse.ts";
import { startSimEngine } from "../../services/tiny-engine/server.ts";
import { bodyOf } from "./transcript-body.ts";

const FOLDER = new URL("../fixtures/vllm-transcripts/", import.meta.url);
const LIMIT_BYTES = 1_000_000;

/** @param cut Bytes that arrive at a time. */
function joined(stream: string, cut = Infinity): JoinedAnswer {
  const answer = new JoinedAnswer(LIMIT_BYTES);
  const splitter = new EventSplitter((buffer, start, end) => answer.take(buffer, start, end), LIMIT_BYTES);
  const bytes = Buffer.from(stream);
  for (let at = 0; at < bytes.length; at += cut) splitter.push(bytes.subarray(at, at + cut));
  return answer;
}

/** What a whole answer and the stream of the same request need not have in common. */
const comparable = (json: Buffer | string): string =>
  String(json)
    .replace(/"id":"[^"]*"/, '"id":"x"')
    .replace(/"created":\d+/, '"created":0');

/** A stream's usage chunk, as vLLM writes it: without what is null. */
function usageChunk(whole: string): string {
  const { usage, model, system_fingerprint } = JSON.parse(whole);
  const given = Object.entries(usage).filter(([, value]) => value !== null);
  const chunk = {
    id: "x",
    object: "x",
    created: 0,
    model,
    choices: [],
    usage: Object.fromEntries(given),
    system_fingerprint,
  };
  return `data: ${JSON.stringify(chunk)}\n\n`;
}

describe("a stream that is joined", () => {
  // Echo, prompt logprobs and stream options are asked for in one piece; n of more than 1 are several legs.
  const names = readdirSync(FOLDER)
    .filter((name) => name.endsWith("-stream.http") && !/err|echo|n2|batch|-pd-|cached|usage/.test(name))
    .map((name) => name.replace("-stream.http", ""));
  assert.ok(names.length >= 16, names.join());
  const shapeOf = (name: string): AnswerShape =>
    new AnswerShape(bodyOf(name.startsWith("chat") ? "chat-max-tokens-1.http" : "completions-max-tokens-1.http"));

  for (const name of names) {
    it(`is vLLM's whole answer, byte for byte: ${name}`, () => {
      const whole = bodyOf(`${name}.http`).toString();
      const stream = bodyOf(`${name}-stream.http`)
        .toString()
        .replace("data: [DONE]\n\n", `${usageChunk(whole)}$&`);
      for (const cut of [Infinity, 13]) {
        const answer = joined(stream, cut);
        assert.ok(answer.done && !answer.parsed);
        // Numbers as vLLM writes them in a stream: 1e-7, not 1e-07.
        assert.equal(comparable(answer.whole(shapeOf(name))), comparable(whole.replaceAll(/e-0(\d)/g, "e-$1")));
      }
    });
  }
});

describe("a joined answer", () => {
  const SHAPE = new AnswerShape(
    Buffer.from(
      '{"id":"a","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"x","logprobs":null,' +
        '"finish_reason":"stop","later":null}],"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":1,"later":null}}',
    ),
  );
  const chunk = (text: string, more = '"logprobs":null,"finish_reason":null'): string =>
    `data: {"id":"b","object":"text_completion","created":2,"model":"m","choices":[{"index":0,"text":${JSON.stringify(text)},${more}}]}\n\n`;
  const finish = chunk("", '"logprobs":null,"finish_reason":"length"');
  const usage = 'data: {"choices":[],"usage":{"prompt_tokens":5,"total_tokens":9,"completion_tokens":4}}\n\n';
  const textOf = (...texts: string[]): unknown =>
    JSON.parse(String(joined(texts.map((text) => chunk(text)).join("") + finish + usage).whole(SHAPE))).choices[0].text;

  it("has the members of the engine's own form, in its order, and nothing of the answer from which it was learned", () => {
    assert.equal(
      String(joined(chunk("one") + chunk(" two") + finish + usage).whole(SHAPE)),
      '{"id":"b","object":"text_completion","created":2,"model":"m","choices":[{"index":0,"text":"one two","logprobs":null,' +
        '"finish_reason":"length","later":null}],"usage":{"prompt_tokens":5,"total_tokens":9,"completion_tokens":4,"later":null}}',
    );
  });

  it("has every text as it was, also one that looks like the end of a chunk", () => {
    const odd = ['plain "quoted"', "\\", '\\","logprobs":null,"finish_reason":null}]}', "\u0000\n", "é€😀", "", "}"];
    assert.equal(textOf("a", ...odd, "z", ...odd), `a${odd.join("")}z${odd.join("")}`);
  });

  it("takes no member between the text and the rest of a chunk for text", () => {
    const more = chunk("b", '"stop_reason":"s","logprobs":null,"finish_reason":null');
    const { choices } = JSON.parse(String(joined(chunk("a") + more + chunk("c") + finish + usage).whole(SHAPE)));
    assert.deepEqual([choices[0].text, choices[0].stop_reason], ["abc", "s"]);
  });

  it("counts the offsets of its tokens in characters, through the whole answer", () => {
    const part = (tokens: string[]): string =>
      chunk(
        tokens.join(""),
        `"logprobs":{"text_offset":${JSON.stringify(tokens.map(() => 0))},"tokens":${JSON.stringify(tokens)}}`,
      );
    const answer = joined(part(["a", "😀"]) + part(["bc"]) + part(["d"]) + finish + usage);
    const { logprobs } = JSON.parse(String(answer.whole(SHAPE))).choices[0];
    assert.deepEqual(logprobs, { text_offset: [0, 1, 2, 4], tokens: ["a", "😀", "bc", "d"] });
  });

  it("fails if the stream ended without a finish reason, or without its usage", () => {
    assert.throws(() => joined(chunk("a") + usage).whole(SHAPE), /without a finish reason/);
    assert.throws(() => joined(chunk("a") + finish).whole(SHAPE), /without its usage/);
  });

  it("is bounded", () => {
    const answer = new JoinedAnswer(100);
    const event = Buffer.from(chunk("0123456789").trim());
    assert.throws(() => {
      for (let count = 0; count < 20; count++) answer.take(event, 0, event.length);
    }, RangeError);
  });

  it("knows that a parser of the engine's was at work", () => {
    const delta = (fields: object): string =>
      `data: {"id":"b","choices":[{"index":0,"delta":${JSON.stringify(fields)}}]}\n\n`;
    const chat = new AnswerShape(bodyOf("chat-basic.http"));
    const head = delta({ role: "assistant", content: "" });
    const end = `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n${usage}`;
    const thinking = joined(head + delta({ reasoning: "hm" }) + delta({ reasoning: " so" }) + end);
    assert.ok(thinking.parsed);
    const { message } = JSON.parse(String(thinking.whole(chat))).choices[0];
    assert.deepEqual([message.reasoning, message.content], ["hm so", null]);
    assert.ok(!joined(head + delta({ content: "yes" }) + end).parsed);
  });
});

describe("the form of an engine's answers", () => {
  const answer = (change: (body: any) => void, name = "chat-basic.http"): Buffer => {
    const body = JSON.parse(String(bodyOf(name)));
    change(body);
    return Buffer.from(JSON.stringify(body));
  };

  it("is not taken from an answer that says more than a stream", () => {
    const refused = (change: (body: any) => void, name?: string): void =>
      assert.throws(() => new AnswerShape(answer(change, name)), SyntaxError);
    refused((body) => (body.choices[0].routed_experts = "k05V"));
    refused((body) => (body.later = {}));
    refused((body) => (body.choices[0].message.reasoning = "hm"));
    refused((body) => (body.choices[0].message.tool_calls = [{}]));
    refused((body) => (body.choices[0].message.content = null));
    refused((body) => delete body.usage);
    refused((body) => (body.choices = []));
  });

  it("is taken with the empty list of tool calls that vLLM 0.23 prints", () => {
    const shape = new AnswerShape(answer((body) => (body.choices[0].message.tool_calls = [])));
    const whole = bodyOf("chat-basic.http").toString();
    const stream = bodyOf("chat-basic-stream.http")
      .toString()
      .replace("data: [DONE]", `${usageChunk(whole)}$&`);
    const { message } = JSON.parse(String(joined(stream).whole(shape))).choices[0];
    assert.deepEqual(message, { ...JSON.parse(whole).choices[0].message, tool_calls: [] });
  });
});

describe("a request that is asked for in one piece", () => {
  const isWholeOnly = (fields: object): boolean => {
    const body = Buffer.from(JSON.stringify({ model: "m", prompt: "p", ...fields }));
    return wholeOnly({ body, members: scanObject(body) });
  };

  it("is one whose stream would say something else", () => {
    for (const fields of [
      { stream_options: { include_usage: true } },
      { stream: 1 },
      { prompt_logprobs: 0 },
      { use_beam_search: true },
      { echo: true },
      { tools: [{ type: "function" }] },
      { tool_choice: "required" },
      { include_reasoning: false },
      { chat_template_kwargs: { enable_thinking: true } },
      { reasoning_effort: "low" },
    ])
      assert.ok(isWholeOnly(fields), JSON.stringify(fields));
  });

  it("is no other", () => {
    for (const fields of [
      {},
      { stream: false, stream_options: null, prompt_logprobs: null, use_beam_search: false, echo: null, tools: [] },
      { include_reasoning: true, chat_template_kwargs: {}, logprobs: 2, seed: 4, n: 2, stop: ["echo"] },
      { response_format: { type: "json_object" }, return_token_ids: true },
    ])
      assert.ok(!isWholeOnly(fields), JSON.stringify(fields));
  });
});

describe("Tandem's own engines", () => {
  const ask = async (url: string, path: string, fields: object): Promise<string> => {
    const response = await fetch(url + path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ model: "tandem-sim", max_tokens: 5, temperature: 0, ...fields }),
    });
    assert.equal(response.status, 200);
    return response.text();
  };

  it("write the form in which their streams are joined", async () => {
    await using engine = await startSimEngine({ connector: "nixl", decodeMsPerToken: 1, reportCachedTokens: true });
    for (const [path, fields] of [
      ["/v1/completions", { prompt: "The sea" }],
      ["/v1/completions", { prompt: "The sea", logprobs: 2, return_token_ids: true }],
      ["/v1/chat/completions", { messages: [{ role: "user", content: "The sea" }] }],
      [
        "/v1/chat/completions",
        { messages: [{ role: "user", content: "sea" }], logprobs: true, top_logprobs: 2, return_token_ids: true },
      ],
    ] as const) {
      await ask(engine.url, path, fields); // From here on its prompt is cached.
      const whole = await ask(engine.url, path, fields);
      const stream = await ask(engine.url, path, { ...fields, stream: true, stream_options: { include_usage: true } });
      // A stream's usage has no null in its details. The prefill engine's figure takes their place anyway.
      const plain = whole.replace(',"created_cache_tokens":null,"multimodal_tokens":null', "");
      assert.equal(comparable(joined(stream).whole(OWN_SHAPES[path])), comparable(plain));
    }
  });
});
