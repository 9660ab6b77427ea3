import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { randomGguf } from "../../../../clients/common/random-gguf.ts";
import { openModelFile, type ModelFile } from "../../../../services/tiny-engine/llama/model-file.ts";
import { TINY } from "../engines.ts";

const LLAMA = new URL("../../../fixtures/chat-templates/llama-3.1.jinja", import.meta.url);
const open = (template: string): ModelFile =>
  openModelFile(randomGguf({ ...TINY, layers: 1, maxContext: 64 }, { "tokenizer.chat_template": template }));

describe("the chat template in a model's file", () => {
  it("may be Meta's own for Llama 3.1", () => {
    const file = open(readFileSync(LLAMA, "utf8"));
    const prompt = file.tokenizer.decode(file.chatTokens([{ role: "user", content: " Hi " }], true, false));
    assert.match(prompt, /<\|start_header_id\|>user<\|end_header_id\|>\n\nHi<\|eot_id\|>/);
    assert.ok(prompt.endsWith("<|start_header_id|>assistant<|end_header_id|>\n\n"));
  });

  for (const [what, template, reason] of [
    ["uses what doesn't exist", "{{ messages | md5 }}", /md5/],
    ["isn't Jinja", "{% if %}", /./],
    ["never ends", "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", /1000 ms/],
  ] as const) {
    it(`keeps the engine from starting, with the reason, when it ${what}`, () =>
      assert.throws(
        () => open(template),
        ({ name, message }: Error) =>
          name === "GgufError" && message.startsWith("the chat template can't be rendered: ") && reason.test(message),
      ));
  }

  const user = { role: "user", content: "Hi" };
  for (const [name, template, messages, message] of [
    ["may refuse a conversation in its own words", "{{ raise_exception('No.') }}", [user], "No."],
    [
      "says why it fails at a conversation",
      "{% if messages | length > 1 %}{{ messages | md5 }}{% endif %}",
      [user, user],
      "The chat template can't render these messages: Unknown ArrayValue filter: md5",
    ],
    [
      "can't have a message continued that it leaves out",
      "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
      [user, { role: "assistant", content: "Hel" }],
      "The chat template leaves out the final message, so that message can't be continued.",
    ],
  ] as const) {
    it(`${name}: a 400`, () => {
      const file = open(template);
      assert.throws(() => file.chatTokens(messages, false, messages.length > 1), { status: 400, message });
    });
  }
});
