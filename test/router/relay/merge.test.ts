import assert from "node:assert/strict";
import { mergeBodies, mergeUsageEvents, sumUsage, usageChunkOf } from "../../../services/router/relay/merge.ts";

// As vLLM 0.32 prints them.
const body = (index: number, text: string, prompt: number, completion: number, cached = "null"): Buffer =>
  Buffer.from(
    `{"id":"cmpl-1","object":"text_completion","created":1795354511,"model":"tiny","choices":[{"index":${index},` +
      `"text":"${text}","logprobs":{"token_logprobs":[-0.10000000000000000555]},"finish_reason":"length"}],` +
      `"service_tier":null,"system_fingerprint":"vllm-0.32.0","usage":{"prompt_tokens":${prompt},` +
      `"total_tokens":${prompt + completion},"completion_tokens":${completion},"prompt_tokens_details":${cached},` +
      `"completion_tokens_details":null},"kv_transfer_params":null,"seed":12345678901234567890}`,
  );

const usageEvent = (prompt: number, completion: number): string =>
  `data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"tiny","choices":[],"usage":{"prompt_tokens":${prompt},` +
  `"total_tokens":${prompt + completion},"completion_tokens":${completion}},"system_fingerprint":"vllm-0.32.0"}\n\n`;

const token = (text: string): string =>
  `data: {"id":"cmpl-1","choices":[{"index":0,"text":${JSON.stringify(text)}}]}\n\n`;

describe("the merged body of several legs", () => {
  it("equals that of a single engine for n = 2", () => {
    const merged = mergeBodies([body(0, "a", 22, 8), body(1, "b", 22, 8)], 2);
    const one = body(0, "a", 22, 16).toString();
    const second = `,{"index":1,"text":"b","logprobs":{"token_logprobs":[-0.10000000000000000555]},"finish_reason":"length"}]`;
    assert.equal(merged.toString(), one.replace('"length"}]', `"length"}${second}`));
  });

  it("counts every prompt of a list once, for any n", () => {
    const bodies = [body(0, "a", 3, 8), body(1, "b", 3, 7), body(2, "c", 4, 6), body(3, "d", 4, 5)];
    const merged = JSON.parse(mergeBodies(bodies, 2).toString());
    assert.deepEqual(merged.usage.prompt_tokens, 7);
    assert.deepEqual(merged.usage.completion_tokens, 26);
    assert.deepEqual(merged.usage.total_tokens, 33);
    assert.deepEqual(
      merged.choices.map((choice: { index: number }) => choice.index),
      [0, 1, 2, 3],
    );
  });

  it("keeps digits that a parse would change", () => {
    const merged = mergeBodies([body(0, "a", 1, 1), body(1, "b", 1, 1)], 1).toString();
    assert.match(merged, /-0\.10000000000000000555.*-0\.10000000000000000555/);
    assert.match(merged, /"seed":12345678901234567890/);
  });

  it("sums cached tokens over prompts, even if one leg has none", () => {
    const cached = '{"cached_tokens":32,"created_cache_tokens":null}';
    const merged = JSON.parse(
      mergeBodies([body(0, "a", 43, 2, cached), body(1, "b", 43, 2, cached), body(2, "c", 9, 2)], 1).toString(),
    );
    assert.deepEqual(merged.usage.prompt_tokens_details, { cached_tokens: 64, created_cache_tokens: null });
  });

  it("has no usage if an engine reports none", () => {
    const bare = Buffer.from('{"choices":[{"index":0}]}');
    assert.equal(
      mergeBodies([bare, Buffer.from('{"choices":[{"index":1}]}')], 2).toString(),
      '{"choices":[{"index":0},{"index":1}]}',
    );
  });

  it("fails with a typed error if a part is not JSON", () => {
    for (const part of ["", "{", "[]", '{"a":1}', '{"choices":3}']) {
      assert.throws(
        () => mergeBodies([body(0, "a", 1, 1), Buffer.from(part)], 2),
        { name: "ServiceError", code: "engine_failed" },
        part,
      );
    }
  });
});

describe("the usage chunk of several legs", () => {
  it("is found in the events that it arrives with, wherever they are cut", () => {
    const events = [token("a"), token('say "choices":[] twice'), usageEvent(22, 8)];
    for (let cut = 0; cut < events.length; cut += 1) {
      const messages = [events.slice(0, cut).join(""), events.slice(cut).join("")];
      assert.deepEqual(
        messages.map((message) => usageChunkOf(Buffer.from(message))?.toString()),
        [undefined, events[2]],
      );
    }
  });

  it("is not found in a text that looks like it", () => {
    const events = Buffer.from(token('{"choices":[]}'));
    assert.equal(usageChunkOf(events), undefined);
  });

  it("equals that of a single engine", () => {
    const merged = mergeUsageEvents([Buffer.from(usageEvent(22, 8)), Buffer.from(usageEvent(22, 5))], 2);
    assert.equal(merged.toString(), usageEvent(22, 13));
  });

  it("has the keys of the first leg in their order", () => {
    const sum = sumUsage(
      [
        { completion_tokens: 1, total_tokens: 3, prompt_tokens: 2, other: "x" },
        { completion_tokens: 4, prompt_tokens: 2 },
      ],
      2,
    );
    assert.equal(JSON.stringify(sum), '{"completion_tokens":5,"total_tokens":7,"prompt_tokens":2,"other":"x"}');
  });
});
