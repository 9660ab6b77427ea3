import assert from "node:assert/strict";
import { parseTemplate, TemplateError } from "../../../../services/tiny-engine/llama/chat/jinja-parse.ts";
import { RefusedByTemplate, render, type Value } from "../../../../services/tiny-engine/llama/chat/jinja-run.ts";

const MESSAGES = [
  { role: "system", content: " Be kind. " },
  { role: "user", content: "Hi" },
  { role: "assistant", content: "Hello" },
];
const run = (template: string, more: Readonly<Record<string, Value>> = {}): string =>
  render(parseTemplate(template), {
    messages: MESSAGES,
    bos_token: "<s>",
    eos_token: "</s>",
    add_generation_prompt: true,
    ...more,
  });

describe("a chat template", () => {
  for (const [name, template, expected] of [
    ["joins text and filters tighter than +", "{{ '<' + messages[0]['content'] | trim + '>' }}", "<Be kind.>"],
    [
      "loops, and knows first and last",
      "{% for m in messages %}{{ m.role }}{% if not loop.last %}, {% endif %}{% endfor %}",
      "system, user, assistant",
    ],
    [
      "chooses between branches",
      "{% for m in messages %}{% if m.role == 'user' %}U{% elif m['role'] == 'system' %}S{% else %}A{% endif %}{% endfor %}",
      "SUA",
    ],
    [
      "sets names, and slices",
      "{% set rest = messages[1:] %}{% set first = messages[0].content %}{{ first | trim }}{{ rest | length }}",
      "Be kind.2",
    ],
    [
      "knows in, is, and, or, not",
      "{{ 'Hi' in messages[1].content and tools is not defined or false }}{{ 'x' not in 'abc' }}",
      "TrueTrue",
    ],
    ["counts", "{% for m in messages %}{{ loop.index0 % 2 == 0 }}{% endfor %}", "TrueFalseTrue"],
    ["chooses inside an expression", "{{ bos_token if add_generation_prompt else eos_token }}", "<s>"],
    ["drops the lines of its blocks", "a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"],
    ["drops space at a dash", "a {%- if true -%} b {%- endif -%} c", "abc"],
    ["keeps the space around what it prints", "a {{ 'b' }}\n c", "a b\n c"],
    ["leaves comments out", "a{# no #}b", "ab"],
    ["unescapes strings", "{{ 'a\\n\\'b\\'' }}", "a\n'b'"],
    ["strips by method", "{{ messages[0].content.strip() }}", "Be kind."],
  ] as const) {
    it(name, () => assert.equal(run(template), expected));
  }

  it("forgets at the end of a turn what was set inside it", () => {
    assert.equal(run("{% set x = 1 %}{% for m in messages %}{% set x = 2 %}{% endfor %}{{ x }}"), "1");
  });

  it("refuses a conversation with its own words", () => {
    assert.throws(
      () => run("{{ raise_exception('roles must alternate') }}"),
      (error) => error instanceof RefusedByTemplate && error.message === "roles must alternate",
    );
  });

  for (const template of [
    "{% macro x() %}{% endmacro %}",
    "{{ a ** b }}",
    "{% for m in messages %}",
    "{{ x | md5 }}",
    "{{ f(1) }}",
    "{% if true %}",
  ]) {
    it(`that it does not know is refused: ${template}`, () =>
      assert.throws(() => run(template, { x: "" }), TemplateError));
  }
});
