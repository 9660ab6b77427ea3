import assert from "node:assert/strict";
import { seededRandom } from "../../clients/loadgen/arrivals.ts";
import {
  countParts,
  duplicateKey,
  scanArray,
  scanObject,
  splice,
  withTrueKeys,
} from "../../services/common/json-body.ts";

const PIECES = [
  "a",
  "key",
  '"',
  "\\",
  "\\\\",
  "\n",
  "\u0000",
  "é",
  "日本",
  "😀",
  "{",
  "}",
  "[",
  "]",
  ",",
  ":",
  " ",
  '\\"',
  "x".repeat(40),
];

function randomText(random: () => number): string {
  return Array.from({ length: Math.floor(random() * 6) }, () => PIECES[Math.floor(random() * PIECES.length)]!).join("");
}

function randomValue(random: () => number, depth: number): unknown {
  const kind = Math.floor(random() * (depth > 3 ? 5 : 7));
  if (kind === 0) return null;
  if (kind === 1) return random() < 0.5;
  if (kind === 2) return Math.floor(random() * 1000) - 500;
  if (kind === 3) return (random() - 0.5) * 10 ** Math.floor(random() * 40 - 20);
  if (kind === 4) return randomText(random);
  if (kind === 5) return Array.from({ length: Math.floor(random() * 4) }, () => randomValue(random, depth + 1));
  return randomObject(random, depth + 1);
}

function randomObject(random: () => number, depth: number): Record<string, unknown> {
  // A null prototype, because "__proto__" would be a key like any other in JSON.
  const object: Record<string, unknown> = Object.create(null) as Record<string, unknown>;
  for (let count = Math.floor(random() * 5); count > 0; count--)
    object[randomText(random)] = randomValue(random, depth);
  return object;
}

/** `value` as JSON with spaces between its parts and some characters of its strings written as escapes. */
function print(value: unknown, random: () => number): string {
  const space = (): string => ["", "", " ", "\n\t", "\r\n  "][Math.floor(random() * 5)]!;
  if (typeof value === "string") {
    return JSON.stringify(value).replace(/[a-z日é]/g, (letter, at: number, whole: string) =>
      random() < 0.2 && whole[at - 1] !== "\\" && !/\\u[0-9a-f]{0,3}$/.test(whole.slice(0, at))
        ? `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`
        : letter,
    );
  }
  if (Array.isArray(value))
    return `[${space()}${value.map((item) => print(item, random)).join(`${space()},${space()}`)}${space()}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const members = Object.entries(value).map(
    ([key, item]) => `${print(key, random)}${space()}:${space()}${print(item, random)}`,
  );
  return `${space()}{${space()}${members.join(`${space()},${space()}`)}${space()}}${space()}`;
}

/** As JSON.parse, but right on every version of Node: V8 of Node 24 mistakes some escaped keys. */
function trueObject(text: string): Readonly<Record<string, unknown>> {
  const json = Buffer.from(text);
  return withTrueKeys(JSON.parse(text) as Record<string, unknown>, json, scanObject(json));
}

describe("scanning a JSON object", () => {
  it("finds the same members as JSON.parse, in any object", () => {
    const random = seededRandom(1);
    for (let round = 0; round < 3000; round++) {
      const written = print(randomObject(random, 0), random);
      const parsed = Object.entries(JSON.parse(written) as object);
      const json = Buffer.from(written);
      const found = new Map(
        scanObject(json).map(({ key, valueStart, valueEnd }) => [
          key,
          JSON.parse(json.toString("utf8", valueStart, valueEnd)) as unknown,
        ]),
      );
      assert.deepEqual(found, new Map(parsed), written);
    }
  });

  it("gives the bytes of key and value", () => {
    const json = Buffer.from(' { "é\\u0061" : [1, 2] ,"b":"x" } ');
    const [first, second] = scanObject(json);
    assert.equal(first?.key, "éa");
    assert.equal(json.toString("utf8", first?.start, first?.valueEnd), '"é\\u0061" : [1, 2]');
    assert.equal(json.toString("utf8", second?.valueStart, second?.valueEnd), '"x"');
  });

  it("ends a string at the right quote, near and far, however many backslashes there are", () => {
    for (let length = 0; length < 60; length++) {
      for (let slashes = 0; slashes < 5; slashes++) {
        const value = `${"x".repeat(length)}${"\\".repeat(slashes)}"tail`;
        const json = Buffer.from(JSON.stringify({ value, next: 1 }));
        assert.deepEqual(
          scanObject(json).map(({ key }) => key),
          ["value", "next"],
          `${length} ${slashes}`,
        );
      }
    }
  });

  it("keeps duplicates and finds them by their decoded names", () => {
    const members = scanObject(Buffer.from('{"stream":true,"\\u0073tream":false}'));
    assert.deepEqual(
      members.map(({ key }) => key),
      ["stream", "stream"],
    );
    assert.equal(duplicateKey(members), "stream");
    assert.equal(duplicateKey(scanObject(Buffer.from('{"a":1,"b":1}'))), undefined);
    assert.equal(duplicateKey(scanObject(Buffer.from('{"__proto__":1}'))), undefined);
  });

  it("says where a text stops being an object", () => {
    for (const [text, message] of [
      ["", /expected an object at position 0, found the end/],
      ["[1]", /expected an object at position 0, found "\["/],
      ["\ufeff{}", /expected an object at position 0/],
      ['{"a" 1}', /expected ":" at position 5/],
      ['{"a":1 "b":2}', /expected "," or "}" at position 7/],
      ['{"a":1,}', /expected a key at position 7/],
      ["{a:1}", /expected a key at position 1/],
      ['{"a":}', /expected a value at position 5/],
      ['{"a":1', /found the end/],
      ['{"a":"x', /expected the end of a string/],
      ['{"a":"x\\', /expected the end of a string/],
      ['{"a":[1,{"b":2}', /expected "\]"/],
      ['{"a":1}x', /expected the end of the text at position 7, found "x"/],
      ["{}{}", /position 2/],
    ] as const) {
      assert.throws(
        () => scanObject(Buffer.from(text)),
        (error) => error instanceof SyntaxError && message.test(error.message),
        text,
      );
    }
  });

  it("never loops or crashes on a text that was cut or garbled", () => {
    const random = seededRandom(2);
    for (let round = 0; round < 2000; round++) {
      const json = Buffer.from(print(randomObject(random, 0), random));
      if (json.length > 0) json[Math.floor(random() * json.length)] = Math.floor(random() * 256);
      const cut = json.subarray(0, Math.floor(random() * (json.length + 1)));
      try {
        scanObject(cut);
      } catch (error) {
        assert.ok(error instanceof SyntaxError, String(error));
      }
    }
  });

  it("takes a time that grows with the size only, also with nothing but escapes", () => {
    const timed = (json: Buffer): number => {
      const start = performance.now();
      scanObject(json);
      return performance.now() - start;
    };
    for (const text of ["\\\\", '\\"', "x"]) {
      timed(Buffer.from(`{"a":"${text.repeat(50_000)}"}`));
      // A quadratic scan of 2 MB takes minutes; ours some milliseconds.
      assert.ok(timed(Buffer.from(`{"a":"${text.repeat(1_000_000)}"}`)) < 1_000, text);
    }
  });
});

describe("scanning a JSON array", () => {
  it("finds the same elements as JSON.parse", () => {
    const random = seededRandom(3);
    for (let round = 0; round < 1000; round++) {
      const array = Array.from({ length: Math.floor(random() * 5) }, () => randomValue(random, 1));
      const json = Buffer.from(`{"list": ${print(array, random)}}`);
      const [member] = scanObject(json);
      const elements = scanArray(json, member!.valueStart, member!.valueEnd);
      assert.deepEqual(
        elements.map(({ start, end }) => JSON.parse(json.toString("utf8", start, end)) as unknown),
        JSON.parse(JSON.stringify(array)),
      );
    }
  });

  it("refuses a value that is not an array", () => {
    const json = Buffer.from('{"a":"[1]"}');
    assert.throws(() => scanArray(json, 5, 10), SyntaxError);
    assert.throws(() => scanArray(Buffer.from("[1 2]"), 0, 5), /position 3/);
    assert.throws(() => scanArray(Buffer.from("[1,"), 0, 3), SyntaxError);
  });
});

describe("splicing a JSON object", () => {
  const change = (text: string, changes: Record<string, string | undefined>): string => {
    const json = Buffer.from(text);
    return splice(json, scanObject(json), new Map(Object.entries(changes))).toString();
  };

  it("leaves all other bytes alone", () => {
    const text = ' {"seed": 12345678901234567890, "t" : 1.0, "x":"\\u00e9"}\n';
    assert.equal(change(text, {}), text);
    assert.equal(change(text, { t: "2" }), ' {"seed": 12345678901234567890, "t" : 2, "x":"\\u00e9"}\n');
    assert.equal(change(text, { n: "1" }), ' {"seed": 12345678901234567890, "t" : 1.0, "x":"\\u00e9","n":1}\n');
  });

  it("takes the right comma along with a removed member", () => {
    const text = '{ "a": 1, "b": 2, "c": 3 }';
    assert.equal(change(text, { a: undefined }), '{ "b": 2, "c": 3 }');
    assert.equal(change(text, { b: undefined }), '{ "a": 1, "c": 3 }');
    assert.equal(change(text, { c: undefined }), '{ "a": 1, "b": 2 }');
    assert.equal(change(text, { a: undefined, c: undefined }), '{ "b": 2 }');
    assert.equal(change(text, { a: undefined, b: undefined, c: undefined, d: "4" }), '{ "d":4 }');
    assert.equal(change("{}", { a: "1", b: "2" }), '{"a":1,"b":2}');
    assert.equal(change('{"a":1}', { zzz: undefined }), '{"a":1}');
  });

  it("changes a key that occurs twice, in any spelling", () => {
    assert.equal(change('{"a":1,"\\u0061":2,"b":3}', { a: undefined }), '{"b":3}');
    assert.equal(change('{"a":1,"\\u0061":2}', { a: "0" }), '{"a":0,"\\u0061":0}');
  });

  it("does to the text what the same changes do to the object", () => {
    const random = seededRandom(4);
    for (let round = 0; round < 3000; round++) {
      const object = randomObject(random, 0);
      const expected = new Map(Object.entries(trueObject(JSON.stringify(object))));
      const changes = new Map<string, string | undefined>();
      for (const key of [...expected.keys(), "new", 'q"'] as string[]) {
        const draw = random();
        if (draw < 0.3) {
          changes.set(key, undefined);
          expected.delete(key);
        } else if (draw < 0.6) {
          const value = JSON.parse(JSON.stringify(randomValue(random, 2))) as unknown;
          changes.set(key, JSON.stringify(value));
          expected.set(key, value);
        }
      }
      const json = Buffer.from(print(object, random));
      const result = splice(json, scanObject(json), changes).toString();
      assert.deepEqual(new Map(Object.entries(trueObject(result))), expected, `${json.toString()} -> ${result}`);
    }
  });
});

describe("the keys of a parsed object", () => {
  const keys = (text: string): unknown => {
    const json = Buffer.from(text);
    return withTrueKeys(JSON.parse(text) as Record<string, unknown>, json, scanObject(json));
  };

  it("are those of the text, also where V8 takes one escaped key for another", () => {
    // Node 24.21.0 gives the first key for the second here.
    assert.deepEqual(keys('{"\\\\":1}'), { "\\": 1 });
    assert.deepEqual(keys('{"\\"":1}'), { '"': 1 });
    assert.deepEqual(keys('{"a":{"\\u0062":1,"\\\\":2},"\\u0063":[3]}'), { a: { b: 1, "\\": 2 }, c: [3] });
  });

  it("come with the very object that was parsed if no key holds an escape", () => {
    const parsed = { a: "\\n", b: [1] };
    const json = Buffer.from('{"a":"\\\\n","b":[1]}');
    assert.equal(withTrueKeys(parsed, json, scanObject(json)), parsed);
  });
});

describe("the number of parts", () => {
  it("counts fields, objects and lists, but not the characters of strings", () => {
    for (const [text, parts] of [
      ["{}", 1],
      ['{"a":1}', 2],
      ['{"a":[1,2,{"b":null}]}', 5],
      ["[[],[]]", 3],
      ['{"a:{[":"\\"{[:","b":"\\\\"}', 3],
      ["1", 0],
      ['"{', 0],
      ['{"a":"x', 2],
    ] as const) {
      assert.equal(countParts(Buffer.from(text), 100), parts, text);
    }
  });

  it("is counted no further than the limit", () => {
    assert.equal(countParts(Buffer.from("[".repeat(1000)), 10), 11);
  });
});
