import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as config from "../../services/common/config.ts";
import {
  address,
  addresses,
  boolean,
  choice,
  defineConfig,
  integer,
  list,
  loadConfig,
  number,
  secret,
  settingsOf,
  text,
} from "../../services/common/config.ts";

const definition = defineConfig(
  "router",
  {
    "rest.listen": address({
      default: "127.0.0.1:3000",
      alias: "port",
      env: ["PROXY_PORT"],
      doc: "Where clients connect.",
    }),
    "queue.limit": integer({ default: 256, min: 0, max: 65_536, unit: "requests", doc: "Requests that may wait." }),
    "queue.timeout_ms": number({ default: 1000, min: 0, unit: "ms", doc: "How long." }),
    "prefill.policy": choice(["round-robin", "least-load"], { default: "least-load", doc: "Picks." }),
    "registry.address": address({ optional: true, alias: "router", doc: "Of the registry." }),
    model: text({ default: "tiny", env: ["MODEL_ID"], doc: "Name of the model." }),
    token: secret({ doc: "Join token." }),
    "engine.flag": list({ doc: "Passed on." }),
    peers: addresses({ default: ["127.0.0.1:1"], doc: "Others." }),
    strict: boolean({ default: false, doc: "No fallbacks." }),
  },
  { summary: "Admits, places and relays." },
);

const load = (argv: readonly string[], env: Record<string, string> = {}) => loadConfig(definition, { argv, env });
const originOf = (loaded: ReturnType<typeof load>, key: string) =>
  settingsOf(loaded).find((setting) => setting.key === key);
const refuses = (argv: readonly string[], message: RegExp, env: Record<string, string> = {}) =>
  assert.throws(
    () => load(argv, env),
    (error: Error) =>
      (error instanceof config.ConfigError && message.test(error.message)) ||
      assert.fail(`${error.message} does not match ${message}`),
  );

describe("a configuration", () => {
  it("has its defaults, typed", () => {
    const loaded = load([]);
    const limit: number = loaded["queue.limit"];
    const policy: "round-robin" | "least-load" = loaded["prefill.policy"];
    const registry: string | undefined = loaded["registry.address"];
    assert.deepEqual(
      [limit, policy, registry, loaded.token, loaded["engine.flag"]],
      [256, "least-load", undefined, "", []],
    );
  });

  it("takes a flag before the environment before the file before the default, and tells which", async () => {
    const folder = await mkdtemp(join(tmpdir(), "tandem-"));
    const file = join(folder, "tandem.json");
    await writeFile(
      file,
      JSON.stringify({ queue: { limit: 1, timeout_ms: 1 }, "prefill.policy": "round-robin", model: "from-file" }),
    );
    const loaded = load(["--config", file, "--queue.limit=3"], {
      TANDEM_QUEUE_LIMIT: "2",
      TANDEM_QUEUE_TIMEOUT_MS: "2.5",
    });
    assert.deepEqual(originOf(loaded, "queue.limit"), {
      key: "queue.limit",
      value: "3 requests",
      origin: "flag --queue.limit",
    });
    assert.deepEqual(originOf(loaded, "queue.timeout_ms"), {
      key: "queue.timeout_ms",
      value: "2.5 ms",
      origin: "env TANDEM_QUEUE_TIMEOUT_MS",
    });
    assert.deepEqual(originOf(loaded, "prefill.policy"), {
      key: "prefill.policy",
      value: "round-robin",
      origin: "file",
    });
    assert.deepEqual(originOf(loaded, "strict"), { key: "strict", value: "false", origin: "default" });
    assert.equal(load([], { TANDEM_CONFIG: file }).model, "from-file");
    await writeFile(file, JSON.stringify({ queue: { limt: 1 } }));
    refuses(["--config", file], /queue\.limt is not a setting of router; did you mean queue\.limit\?/);
    await writeFile(file, JSON.stringify({ queue: { limit: null } }));
    refuses(["--config", file], /queue\.limit: expected an integer from 0 to 65536 \(requests\), got null/);
    await writeFile(file, JSON.stringify({ queue: { limit: 1 }, "queue.limit": 2 }));
    refuses(["--config", file], /given twice/);
    await writeFile(file, JSON.stringify({ constructor: 1 }));
    refuses(["--config", file], /constructor is not a setting/);
    await writeFile(file, "[1]");
    refuses(["--config", file], /must hold one JSON object/);
    await rm(folder, { recursive: true });
    refuses(["--config", file], /can't be read as JSON/);
  });

  it("accepts the extra variables of its schema, with its own name first", () => {
    assert.equal(load([], { MODEL_ID: "a" }).model, "a");
    assert.equal(load([], { MODEL_ID: "a", TANDEM_MODEL: "b" }).model, "b");
    assert.equal(load([], { MODEL_ID: "" }).model, "tiny");
  });

  it("changes only the port when a bare port is given, on the host of the source below", () => {
    assert.equal(load(["--port", "9"])["rest.listen"], "127.0.0.1:9");
    assert.equal(load(["--port", "9"], { TANDEM_REST_LISTEN: "[::1]:3" })["rest.listen"], "[::1]:9");
    assert.equal(load([], { PROXY_PORT: "8" })["rest.listen"], "127.0.0.1:8");
    assert.equal(load(["--port", "0.0.0.0:8"])["rest.listen"], "0.0.0.0:8");
    assert.equal(load(["--router="], { TANDEM_REGISTRY_ADDRESS: "a:1" })["registry.address"], undefined);
  });

  it("reads switches and repeated flags", () => {
    assert.equal(load(["--strict"]).strict, true);
    assert.equal(load(["--no-strict"], { TANDEM_STRICT: "1" }).strict, false);
    assert.equal(load(["--strict=false"]).strict, false);
    assert.deepEqual(load(["--engine.flag", "a,b", "--engine.flag=--x=1"])["engine.flag"], ["a,b", "--x=1"]);
    assert.deepEqual(load([], { TANDEM_ENGINE_FLAG: "a, b" })["engine.flag"], ["a", "b"]);
  });

  it("reads several addresses, each as one is read", () => {
    assert.deepEqual(load([]).peers, ["127.0.0.1:1"]);
    assert.deepEqual(load(["--peers", "a:1, 2", "--peers=[::1]:3"]).peers, ["a:1", "127.0.0.1:2", "[::1]:3"]);
    assert.deepEqual(load(["--peers=7"], { TANDEM_PEERS: "b:1,c:2" }).peers, ["b:7"]);
    assert.deepEqual([load(["--peers="]).peers, load([], { TANDEM_PEERS: "" }).peers], [[], []]);
    refuses(
      ["--peers", "a:1,b"],
      /--peers: expected host:port.*, or several of them, got \["a:1,b"\]; it is not an address/,
    );
    refuses([], /TANDEM_PEERS: .*the port is too large/, { TANDEM_PEERS: "a:1,b:65536" });
  });

  it("never shows a secret", () => {
    const loaded = load(["--token", "hush"]);
    assert.equal(loaded.token, "hush");
    assert.equal(originOf(loaded, "token")?.value, "set");
    assert.equal(originOf(load([]), "token")?.value, "unset");
  });

  it("names the nearest key for an unknown one", () => {
    refuses(["--queue.limt", "5"], /no flag --queue\.limt\. Did you mean --queue\.limit\?/);
    refuses(["--prot", "5"], /Did you mean --port\?/);
    refuses(["--nothing-like-it-at-all"], /no flag --nothing-like-it-at-all\. "tandem router --help"/);
    refuses([], /TANDEM_QUEUE_LIMT is not a variable of router; did you mean TANDEM_QUEUE_LIMIT\?/, {
      TANDEM_QUEUE_LIMT: "5",
    });
    assert.equal(load([], { TANDEM_DECODE_SLOTS: "3", TANDEMONIUM: "1" }).model, "tiny"); // Another process's, another program's.
  });

  it("says what it expected for a bad value", () => {
    refuses(
      ["--queue.limit", "many"],
      /--queue\.limit: expected an integer from 0 to 65536 \(requests\), got "many"; it is not an integer/,
    );
    refuses(["--queue.limit", "65537"], /it is too large/);
    refuses(["--queue.limit", "-1"], /it is too small/);
    for (const bad of ["1.5", "", " 1", "0x10", "1e3", "9007199254740993"])
      refuses([`--queue.limit=${bad}`], /not an integer/);
    for (const bad of ["", "NaN", "Infinity", "1_000", "5ms"]) refuses([`--queue.timeout_ms=${bad}`], /not a number/);
    refuses(["--prefill.policy", "best"], /expected one of round-robin, least-load/);
    refuses([], /TANDEM_STRICT: expected true or false, got "maybe"/, { TANDEM_STRICT: "maybe" });
    for (const bad of ["localhost", "a:b", ":80", "::1:80", "http://a:80", "a:-1", ""])
      refuses([`--rest.listen=${bad}`], /not an address/);
    refuses(["--rest.listen", "a:65536"], /port is too large/);
    refuses(["--port", "65536"], /port is too large/);
  });

  it("refuses what could be meant in two ways", () => {
    refuses(["--port", "1", "--rest.listen", "a:2"], /--port and --rest\.listen both set rest\.listen/);
    refuses(["--model", "a", "--model", "b"], /--model is given twice/);
    refuses(["--model"], /--model needs a value: text/);
    refuses(["--model", "--strict"], /a value that starts with -- is written --model=--strict/);
    refuses(["up"], /"up" is not a flag/);
    refuses(["--strict", "false"], /"false" is not a flag/);
    refuses(["--no-model"], /no flag --no-model/);
  });

  it("names a required setting that is missing", () => {
    const needy = defineConfig("needy", { "engine.url": text({ alias: "attach", doc: "Where." }) });
    assert.throws(
      () => loadConfig(needy, { argv: [], env: {} }),
      /needy needs engine\.url: give --attach, text, or set TANDEM_ENGINE_URL/,
    );
  });

  it("can't be changed, and its copies are not taken for it", () => {
    const loaded = load([]);
    assert.throws(() => ((loaded as { model: string }).model = "x"), TypeError);
    assert.throws(() => settingsOf({ ...loaded }), /copy/);
  });

  it("throws the help text for --help, whatever else is there", () => {
    assert.throws(() => load(["--port", "1", "--help"]), config.HelpRequested);
    assert.throws(() => load(["-h"]), config.HelpRequested);
  });
});

describe("the definition of a configuration", () => {
  it("refuses two settings with one name, and a default outside its own range", () => {
    assert.throws(
      () => defineConfig("x", { a: text({ default: "", doc: "" }), b: text({ default: "", alias: "a", doc: "" }) }),
      /both a and b answer to a/,
    );
    assert.throws(
      () => defineConfig("x", { "a.b": text({ default: "", doc: "" }), a_b: text({ default: "", doc: "" }) }),
      /TANDEM_A_B/,
    );
    assert.throws(() => defineConfig("x", { a: integer({ default: 5, max: 4, doc: "" }) }), /too large/);
    assert.throws(() => defineConfig("x", { camelCase: text({ default: "", doc: "" }) }), /snake_case/);
    assert.throws(() => defineConfig("x", { config: text({ default: "", doc: "" }) }), /--config/);
  });
});

describe("--help", () => {
  it("lists every setting with unit, default, variables and meaning, short names first", async () => {
    const help = config.helpText(definition);
    for (const [key, option] of Object.entries(definition.schema)) {
      assert.match(help, new RegExp(`--${key.replace(".", "\\.")}\\b`));
      assert.ok(help.includes(option.doc), `${key}: its doc is missing`);
    }
    assert.match(help, /^Admits, places and relays\.\n\nUsage: tandem router/);
    assert.match(help, /--port, --rest\.listen HOST:PORT/);
    assert.match(help, /an integer from 0 to 65536 \(requests\); default 256 requests; env TANDEM_QUEUE_LIMIT/);
    assert.ok(help.indexOf("--router") < help.indexOf("--queue.limit"), "short names first");
    assert.ok(
      help.split("\n").every((line) => line.length <= 110),
      "no line is too long for a terminal",
    );
  });

  it("has a page of the documentation to it", async () => {
    const { configMarkdown } = await import("../../services/common/config-help.ts");
    const page = configMarkdown(definition);
    assert.match(page, /^## router\n/);
    assert.match(page, /\| `--rest\.listen`, `--port` \| `TANDEM_REST_LISTEN`, `PROXY_PORT` \| host:port/);
    assert.match(page, /round-robin, least-load/);
  });
});
