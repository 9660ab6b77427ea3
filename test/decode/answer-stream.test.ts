import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { FinishReason } from "#gen/tandem/decode/v1/decode_pb.js";
import { scanObject } from "../../services/common/json-body.ts";
import { AnswerStream } from "../../services/decode/answer-stream.ts";
import { rewriteAnswer, type ResponseIdentity } from "../../services/decode/answer.ts";
import { EventSplitter } from "../../services/engine/sse.ts";
import { bodyOf } from "./transcript-body.ts";

const IDENTITY: ResponseIdentity = { id: 'public "id"', created: 42, choiceIndex: 3, cachedTokens: 7 };
const FOLDER = new URL("../fixtures/vllm-transcripts/", import.meta.url);

function read(
  bytes: Buffer,
  o: { wantsUsage?: boolean; chat?: boolean; identity?: ResponseIdentity; cut?: number } = {},
): { stream: AnswerStream; out: string; tokens: number } {
  const stream = new AnswerStream({
    identity: o.identity ?? IDENTITY,
    wantsUsage: o.wantsUsage ?? false,
    startsWithRole: o.chat ?? false,
  });
  const splitter = new EventSplitter((buffer, start, end) => stream.take(buffer, start, end), 1_000_000);
  const cut = o.cut ?? bytes.length;
  let out = "";
  let tokens = 0;
  for (let at = 0; at < bytes.length; at += cut) {
    splitter.push(bytes.subarray(at, at + cut));
    out += Buffer.concat(stream.parts, stream.bytes).toString();
    tokens += stream.tokens;
    stream.cleared();
  }
  return { stream, out, tokens };
}

const events = (text: string): any[] =>
  text
    .split("\n\n")
    .filter((event) => event !== "")
    .map((event) => JSON.parse(event.replace(/^data: /, "")));

describe("vLLM's recorded streams", () => {
  const names = readdirSync(FOLDER).filter(
    (name) => /-stream(-usage.*)?\.http$/.test(name) && !/err|n2|batch|dead/.test(name),
  );
  assert.ok(names.length > 20);

  for (const name of names) {
    it(`${name}: only id, created, index and usage change, however it is cut`, () => {
      const bytes = bodyOf(name);
      if (!bytes.toString().startsWith("data: ")) return;
      const before = events(bytes.toString().replace("data: [DONE]\n\n", ""));
      for (const cut of [bytes.length, 13]) {
        const { stream, out } = read(bytes, { wantsUsage: true, cut });
        assert.ok(stream.done && stream.finishReason !== undefined && stream.error === undefined);
        const after = events(out);
        assert.equal(after.length, before.length);
        after.forEach((chunk, i) => {
          const was = before[i];
          assert.deepEqual([chunk.id, chunk.created], [IDENTITY.id, IDENTITY.created]);
          for (const choice of chunk.choices) assert.equal(choice.index, 3);
          if (chunk.usage !== undefined && chunk.usage !== null)
            assert.equal(chunk.usage.prompt_tokens_details.cached_tokens, 7);
          const restored = {
            ...chunk,
            id: was.id,
            created: was.created,
            choices: chunk.choices.map((choice: object) => ({ ...choice, index: 0 })),
          };
          if (was.usage !== undefined) restored.usage = was.usage;
          assert.deepEqual(restored, was);
        });
      }
    });
  }

  it("lose the usage chunk that the client didn't ask for, and keep its numbers", () => {
    const { stream, out } = read(bodyOf("chat-stream-usage.http"), { chat: true });
    assert.doesNotMatch(out, /usage/);
    assert.deepEqual(stream.usage, { promptTokens: 18, completionTokens: 8 });
    assert.equal(stream.finishReason, FinishReason.LENGTH);
  });

  it("count a token for each chunk but the one that carries the role", () => {
    assert.equal(read(bodyOf("chat-stream-usage.http"), { chat: true }).tokens, 3);
    assert.equal(read(bodyOf("completions-stream-usage.http")).tokens, 8);
  });

  it("become an error where vLLM reports one inside the stream", () => {
    const { stream, out } = read(bodyOf("completions-pd-dead-prefill-new-engine-stream.http"));
    assert.match(stream.error!, /Internal server error/);
    assert.deepEqual([out, stream.done], ["", false]);
  });
});

describe("a chunk", () => {
  const chunk = (
    rest: string,
    index = 0,
    head = '"id":"cmpl-e","object":"text_completion","created":1,"model":"m"',
  ): string => `data: {${head},"choices":[{"index":${index},${rest}}]}\n\n`;

  it("is passed on as the engine wrote it: floats, unknown fields, escapes", () => {
    const rest = '"text":"\\u00e9","logprob":-0.0,"big":12345678901234567890,"x":1.0e-7,"finish_reason":null';
    const { out } = read(Buffer.from(chunk(rest).repeat(2)));
    assert.equal(
      out,
      `data: {"id":"public \\"id\\"","object":"text_completion","created":42,"model":"m","choices":[{"index":3,${rest}}]}\n\n`.repeat(
        2,
      ),
    );
  });

  it("whose index only begins alike is not taken for the same", () => {
    const { out } = read(Buffer.from(chunk('"text":"a"', 1) + chunk('"text":"b"', 10)));
    assert.deepEqual(
      events(out).map((event) => event.choices[0].index),
      [3, 3],
    );
  });

  it("of another shape goes the slow way, to the same effect", () => {
    const text =
      'data:{"choices": [ {"finish_reason": "stop", "text": "x", "index": 0} ], "created": 5, "id": "e"}\n\n';
    const { out, stream } = read(Buffer.from(text + text));
    assert.equal(events(out).length, 2);
    for (const event of events(out))
      assert.deepEqual([event.id, event.created, event.choices[0].index], [IDENTITY.id, 42, 3]);
    assert.equal(stream.finishReason, FinishReason.STOP);
  });

  it("that quotes field names in its text is only text", () => {
    const rest =
      '"text":"\\"finish_reason\\":\\"stop\\" \\"kv_transfer_params\\":{} \\"usage\\":{","finish_reason":null';
    const { out, stream } = read(Buffer.from(chunk('"text":"a"') + chunk(rest)));
    assert.equal(stream.finishReason, undefined);
    assert.equal(events(out)[1].choices[0].text, '"finish_reason":"stop" "kv_transfer_params":{} "usage":{');
  });

  it("never carries KV parameters, whatever their position", () => {
    const secret = '"kv_transfer_params":{"remote_host":"10.0.0.1"}';
    const inChoice = chunk(`"text":"a",${secret}`);
    const atTop = chunk('"text":"b"').replace("}\n\n", `,${secret},"ec_transfer_params":{"a":1}}\n\n`);
    const { out } = read(Buffer.from(inChoice + atTop + inChoice + atTop));
    assert.equal(events(out).length, 4);
    assert.doesNotMatch(out, /10\.0|"a":1/);
  });

  it("loses the usage of a client that didn't ask, also in the middle of a stream", () => {
    const text = chunk('"text":"a"').replace("}\n\n", ',"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n');
    const { out, stream } = read(Buffer.from(text + text));
    assert.doesNotMatch(out, /usage/);
    assert.deepEqual(stream.usage, { promptTokens: 3, completionTokens: 1 });
  });
});

describe("the figure of cached tokens", () => {
  const details = (usage: string, cachedTokens: number | undefined): unknown => {
    const body = Buffer.from(
      `{"id":"e","created":1,"choices":[{"index":0,"finish_reason":"tool_calls"}],"usage":${usage},"kv_transfer_params":null}`,
    );
    const read = rewriteAnswer(body, scanObject(body), { ...IDENTITY, cachedTokens }, true);
    assert.equal(read.finishReason, "tool_calls");
    return JSON.parse(read.json.toString()).usage.prompt_tokens_details;
  };

  it("is the prefill engine's, whatever the decode engine says", () => {
    assert.deepEqual(details('{"prompt_tokens_details":{"cached_tokens":99,"other":1}}', 4), {
      cached_tokens: 4,
      other: 1,
    });
    assert.deepEqual(details('{"prompt_tokens_details":null}', 4), { cached_tokens: 4 });
    assert.deepEqual(details("{}", 0), { cached_tokens: 0 });
  });

  it("is left out where the prefill engine doesn't say", () => {
    assert.equal(details('{"prompt_tokens_details":{"cached_tokens":99}}', undefined), null);
    assert.equal(details("{}", undefined), undefined);
  });
});
