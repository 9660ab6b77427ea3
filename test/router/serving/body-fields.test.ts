// The list of fields is what a request is read by: each entry changes what is read, and nothing else can be read.
import assert from "node:assert/strict";
import type { LegPath } from "../../../services/kv/connector.ts";
import type { BODY_FIELDS } from "../../../services/router/serving/body-fields.ts";
import { readOpenAiRequest } from "../../../services/router/serving/openai-request.ts";

type Body = Readonly<Record<string, unknown>>;

const CHAT = { messages: [{ role: "user", content: "hi" }] };
const PROMPT = { prompt: "hi" };

/** For each field, two bodies that differ in it alone. */
const READ: Record<keyof typeof BODY_FIELDS, readonly [Body, Body]> = {
  model: [PROMPT, { ...PROMPT, model: "other" }],
  messages: [CHAT, { messages: [] }],
  prompt: [PROMPT, { prompt: ["a", "b"] }],
  stream: [PROMPT, { ...PROMPT, stream: true }],
  stream_options: [PROMPT, { ...PROMPT, stream_options: {} }],
  include_usage: [
    { ...PROMPT, stream: true, stream_options: {} },
    { ...PROMPT, stream: true, stream_options: { include_usage: true } },
  ],
  n: [PROMPT, { ...PROMPT, n: 2 }],
  max_completion_tokens: [CHAT, { ...CHAT, max_completion_tokens: 3 }],
  max_tokens: [PROMPT, { ...PROMPT, max_tokens: 3 }],
  min_tokens: [
    { ...PROMPT, max_tokens: 3 },
    { ...PROMPT, max_tokens: 3, min_tokens: 4 },
  ],
  temperature: [PROMPT, { ...PROMPT, temperature: 0 }],
  seed: [PROMPT, { ...PROMPT, seed: 1 }],
  user: [PROMPT, { ...PROMPT, user: "team" }],
  priority: [PROMPT, { ...PROMPT, priority: 5 }],
  echo: [PROMPT, { ...PROMPT, echo: 1 }],
  use_beam_search: [PROMPT, { ...PROMPT, use_beam_search: 1 }],
};

/** The request, or why it is refused. */
function read(body: Body): unknown {
  const path: LegPath = "messages" in body ? "/v1/chat/completions" : "/v1/completions";
  const models = new Map([["tiny", { maxModelLen: 512 }]]);
  try {
    return readOpenAiRequest(path, Buffer.from(JSON.stringify(body)), models, 8);
  } catch (error) {
    return (error as Error).message;
  }
}

describe("the list of fields", () => {
  for (const [field, [without, having]] of Object.entries(READ)) {
    it(`has ${field} because it changes how a request is read`, () => {
      assert.notEqual(typeof read(without), "string");
      assert.notDeepEqual(read(having), read(without));
    });
  }
});
