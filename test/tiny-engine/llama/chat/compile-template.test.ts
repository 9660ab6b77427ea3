import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { compileTemplate } from "../../../../services/tiny-engine/llama/chat/compile-template.ts";

const FIXTURES = new URL("../../../fixtures/chat-templates/", import.meta.url);
const read = (file: string): string => readFileSync(new URL(file, FIXTURES), "utf8");

interface Prompt {
  readonly template: string;
  readonly conversation: string;
  /** Of Jinja2 itself; or the template refuses the conversation, in these words. */
  readonly prompt?: string;
  readonly refusal?: string;
}
const prompts = JSON.parse(read("prompts.json")) as Prompt[];
const conversations = JSON.parse(read("conversations.json")) as Record<string, object>;
const recordedOn = (): Date => new Date("2026-02-03T12:34:56Z");

const render = (source: string, context: object = {}): string => compileTemplate(source, recordedOn)({ ...context });

for (const template of new Set(prompts.map((prompt) => prompt.template))) {
  describe(`the chat template of ${template}`, () => {
    for (const { conversation, prompt, refusal } of prompts.filter((one) => one.template === template)) {
      const make = (): string =>
        render(read(`${template}.jinja`), {
          ...conversations[conversation],
          bos_token: "<BOS>",
          eos_token: "<EOS>",
          add_generation_prompt: true,
        });
      if (refusal === undefined)
        it(`makes the prompt that Jinja2 makes: ${conversation}`, () => assert.equal(make(), prompt));
      else
        it(`refuses in its own words: ${conversation}`, () =>
          assert.throws(make, { name: "RefusedByTemplate", message: refusal }));
    }
  });
}

describe("a chat template", () => {
  const tools = [{ name: "a" }, { name: "b" }];
  for (const [name, template, expected] of [
    [
      "carries values out of loops in a namespace",
      "{% set ns = namespace(n=0) %}{% for t in tools %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
      "2",
    ],
    ["has defaults", "{{ system | default('none') }}", "none"],
    ["joins an attribute of many", "{{ tools | map(attribute='name') | join(', ') }}", "a, b"],
    ["counts by range", "{% for i in range(2, 8, 3) %}{{ i }} {% endfor %}", "2 5 "],
    ["drops the lines of its blocks", "a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"],
    [
      "writes the day and never the hour, so that two engines agree",
      "{{ strftime_now('%A %d %B %Y (%a %b %m) %H:%M:%S %%') }}",
      "Tuesday 03 February 2026 (Tue Feb 02) 00:00:00 %",
    ],
  ] as const) {
    it(name, () => assert.equal(render(template, { tools }), expected));
  }

  for (const [what, template, message] of [
    ["a filter that doesn't exist", "{{ tools | md5 }}", /md5/],
    ["a function that doesn't exist", "{{ f(1) }}", /not a function/],
    ["a block without its end", "{% for t in tools %}", /./],
    [
      "a loop that never ends",
      "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
      /1000 ms/,
    ],
    ["a range without end", "{{ range(1, 2, 0) }}", /range/],
    ["a range that is too long", "{{ range(99999999) }}", /range/],
    ["a macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", /./],
  ] as const) {
    it(`fails with the reason at ${what}`, () =>
      assert.throws(() => render(template, { tools }), { name: "TemplateError", message }));
  }

  it("reaches nothing outside of it", () => {
    for (const name of ["process", "globalThis", "require", "constructor", "__proto__"]) {
      assert.equal(render(`{{ ${name} is defined }}{{ tools[0].${name} is defined }}`, { tools }), "falsefalse", name);
    }
  });
});
