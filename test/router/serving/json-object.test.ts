// Bodies that are cheap to send and would be dear to read.
import assert from "node:assert/strict";
import type { ServiceError } from "../../../services/common/errors.ts";
import { parseJsonObject } from "../../../services/router/serving/json-object.ts";

const list = (count: number, of: (index: number) => string): string =>
  Array.from({ length: count }, (_, index) => of(index)).join(",");
const MANY = 600_000;

describe("a body with very many parts", () => {
  for (const [name, text] of [
    ["fields", `{"prompt":"x",${list(MANY, (index) => `"k${index}":1`)}}`],
    ["fields in escapes", `{"prompt":"x",${list(MANY, (index) => `"\\u006b${index}":1`)}}`],
    ["fields of a field", `{"prompt":"x","vllm_xargs":{${list(MANY, (index) => `"k${index}":1`)}}}`],
    ["objects of many forms", `{"prompt":"x","a":[${list(MANY, (index) => `{"k${index}":1}`)}]}`],
    ["lists in lists", `{"prompt":"x","a":${"[".repeat(4 * MANY)}${"]".repeat(4 * MANY)}}`],
    ["lists in lists that never end", `{"prompt":"x","a":${"[".repeat(8 * MANY)}`],
  ] as const) {
    // A parse of the whole would take seconds; of the last one it would say that it is broken.
    it(`is refused before it is parsed: ${name}`, () => {
      const refusal = (error: ServiceError): boolean =>
        error.code === "invalid_request" && /more than the 200000 fields/.test(error.message);
      assert.throws(() => parseJsonObject(Buffer.from(text)), refusal);
    });
  }

  it("is refused for the number of the body's own fields", () => {
    const body = (count: number): Buffer => Buffer.from(`{${list(count, (index) => `"k${index}":1`)}}`);
    assert.equal(Object.keys(parseJsonObject(body(1_000))).length, 1_000);
    assert.throws(() => parseJsonObject(body(1_001)), /1001 fields, more than the 1000/);
  });
});

describe("a body that is only long", () => {
  for (const [name, text] of [
    ["a prompt that looks like JSON", JSON.stringify({ prompt: '{"a":[{}],'.repeat(300_000) })],
    ["token ids", JSON.stringify({ prompt: Array(1_000_000).fill(1) })],
    ["a list of texts", JSON.stringify({ prompt: Array(500_000).fill('[{"\\') })],
    ["a long chat", `{"messages":[${list(60_000, () => '{"role":"user","content":"x: {}"}')}]}`],
  ] as const) {
    it(`is read: ${name}`, () => {
      assert.ok(JSON.stringify(parseJsonObject(Buffer.from(text))) === text);
    });
  }

  it("is reported with the position of its fault, however long", () => {
    assert.throws(() => parseJsonObject(Buffer.from(`{"prompt":"${"x".repeat(300_000)}`)), /JSON decode error/);
  });
});
