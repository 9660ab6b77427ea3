import assert from "node:assert/strict";
import {
  addresses,
  boolean,
  ConfigError,
  defineConfig,
  integer,
  list,
  loadConfig,
  secret,
  section,
  text,
} from "../../services/common/config.ts";
import { configFile } from "../support/config-file.ts";

const definition = defineConfig("router", {
  model: text("model", "Name of the model.", { default: "tiny" }),
  strict: boolean("strict", "No fallbacks.", { default: false }),
  token: secret("token", "Join token."),
  engineFlags: list("engine.flag", "Passed on."),
  peers: addresses("peers", "Others."),
  queue: section("The queue", {
    limit: integer("queue.limit", "Requests that wait.", { default: 256, min: 0, max: 65_536, unit: "requests" }),
  }),
});

const load = (path: string) => loadConfig(definition, { argv: ["--config", path], env: {} });
const refuses = (path: string, message: RegExp) =>
  assert.throws(
    () => load(path),
    (error: Error) =>
      (error instanceof ConfigError && message.test(error.message)) ||
      assert.fail(`${error.message} does not match ${message}`),
  );

describe("a configuration file", () => {
  it("is YAML with comments, aliases and lists, or JSON", async () => {
    await using file = await configFile(
      "# For the night shift.\nmodel: &name 1e3 # As it is written.\nengine:\n  flag: [--a=1, *name]\nqueue.limit: 1e3\nstrict: yes\ntoken: 0x1F\npeers: a:1,b:2\n",
    );
    const loaded = load(file.path);
    assert.deepEqual(
      [loaded.model, loaded.engineFlags, loaded.queue.limit, loaded.strict, loaded.token],
      ["1e3", ["--a=1", "1e3"], 1000, true, "0x1F"],
    );
    assert.deepEqual(loaded.peers, ["a:1", "b:2"]);
    await using json = await configFile(JSON.stringify({ queue: { limit: 7 }, "engine.flag": ["x"], strict: true }));
    const old = load(json.path);
    assert.deepEqual([old.queue.limit, old.engineFlags, old.strict], [7, ["x"], true]);
    await using empty = await configFile("# Nothing yet.\n");
    assert.equal(load(empty.path).model, "tiny");
    await using none = await configFile("engine: {flag: []}");
    assert.deepEqual(load(none.path).engineFlags, []);
  });

  for (const [what, written, message] of [
    [
      "an unknown key",
      "strict: true\nqueue:\n  limt: 1\n",
      /:3: queue\.limt is not a setting of router; did you mean queue\.limit\?/,
    ],
    ["an unknown section", "nothing: {}\n", /:1: nothing is not a setting/],
    ["a key of every object", "constructor: 1\n", /:1: constructor is not a setting/],
    [
      "a bad value",
      "queue:\n\n  limit: many\n",
      /:3: queue\.limit: expected an integer from 0 to 65536 \(requests\), got "many"; it is not an integer/,
    ],
    [
      "no value",
      "queue:\n  limit:\n",
      /:2: queue\.limit: expected an integer from 0 to 65536 \(requests\), got null\./,
    ],
    ["a list where one value is meant", "model: [a]\n", /:1: model: expected text, got \["a"\]\./],
    ["a mapping where one value is meant", "model: {a: 1}\n", /:1: model: expected text, got \{"a":1\}\./],
    ["a key given twice", "queue: {limit: 1}\nqueue.limit: 2\n", /:2: queue\.limit is given twice/],
    ["a key given twice in one mapping", "model: a\nmodel: b\n", /:2: .*unique/],
    ["broken YAML", "model: a\n  queue: [\n", /:1: /],
    ["an unknown tag", "model: !secret a\n", /:1: .*tag/],
    ["an alias of nothing", "model: *nothing\n", /:1: .*alias/],
    ["a list", "[1]", /must hold one mapping of keys to values/],
    ["two documents", "model: a\n---\nmodel: b\n", /:2: /],
  ] as const) {
    it(`is refused with file, line and key for ${what}`, async () => {
      await using file = await configFile(written);
      refuses(file.path, message);
      refuses(file.path, /tandem\.yaml/);
    });
  }

  it("is refused without showing its secrets", async () => {
    await using file = await configFile("token: [hush]\n");
    refuses(file.path, /^(?!.*hush).*:1: token: expected text, got something else\.$/);
    await using broken = await configFile("token: hush\nmodel: [\n");
    refuses(broken.path, /^(?!.*hush)/);
  });

  it("is refused if it does not exist", () => {
    refuses("/no/such.yaml", /The configuration file \/no\/such\.yaml can't be read: ENOENT/);
  });
});
