import assert from "node:assert/strict";
import { helpText } from "../../services/common/config-help.ts";
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
  section,
  text,
} from "../../services/common/config.ts";
import { configFile } from "../support/config-file.ts";

const definition = defineConfig(
  "router",
  {
    model: text("model", "Name of the model.", { default: "tiny", env: ["MODEL_ID"] }),
    strict: boolean("strict", "No fallbacks.", { default: false }),
    rest: section("OpenAI REST", {
      listen: address("rest.listen", "Where clients connect.", {
        default: "127.0.0.1:3000",
        alias: "port",
        env: ["PROXY_PORT"],
      }),
      token: secret("token", "Join token."),
    }),
    queue: section("The queue", {
      limit: integer("queue.limit", "Requests that may wait.", {
        default: 256,
        min: 0,
        max: 65_536,
        unit: "requests",
        live: true,
      }),
      timeoutMs: number("queue.timeout_ms", "How long.", { default: 1000, min: 0, unit: "ms" }),
    }),
    placement: section("Placement", {
      prefill: choice("prefill.policy", "Picks.", ["round-robin", "least-load"], { default: "least-load", live: true }),
    }),
    others: section("Others", {
      registry: address("registry.address", "Of the registry.", { optional: true, alias: "router" }),
      engineFlags: list("engine.flag", "Passed on."),
      peers: addresses("peers", "Others.", { default: ["127.0.0.1:1"] }),
    }),
  },
  {
    summary: "Admits, places and relays.",
    rest: "engine.flag",
    removed: { "queue.patience_ms": "queue.timeout_ms is the longest wait" },
  },
);

const load = (argv: readonly string[], env: Record<string, string> = {}) => loadConfig(definition, { argv, env });
const shownOf = (loaded: ReturnType<typeof load>, key: string) =>
  loaded.settings.all.find((setting) => setting.key === key);
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
    const limit: number = loaded.queue.current.limit;
    const policy: "round-robin" | "least-load" = loaded.placement.current.prefill;
    const registry: string | undefined = loaded.others.registry;
    assert.deepEqual(
      [limit, policy, registry, loaded.rest.token, loaded.others.engineFlags],
      [256, "least-load", undefined, "", []],
    );
  });

  it("takes a flag before the environment before the file before the default, and tells which", async () => {
    await using file = await configFile(
      "queue:\n  limit: 1\n  timeout_ms: 1\nprefill.policy: round-robin\nmodel: of-file\n",
    );
    const loaded = load(["--config", file.path, "--queue.limit=3"], {
      TANDEM_QUEUE_LIMIT: "2",
      TANDEM_QUEUE_TIMEOUT_MS: "2.5",
    });
    const origins = ["queue.limit", "queue.timeout_ms", "prefill.policy", "strict"].map((key) => shownOf(loaded, key));
    assert.deepEqual(origins, [
      { key: "queue.limit", value: "3 requests", origin: "flag --queue.limit" },
      { key: "queue.timeout_ms", value: "2.5 ms", origin: "env TANDEM_QUEUE_TIMEOUT_MS" },
      { key: "prefill.policy", value: "round-robin", origin: `file ${file.path}:4` },
      { key: "strict", value: "false", origin: "default" },
    ]);
    assert.equal(load([], { TANDEM_CONFIG: file.path }).model, "of-file");
    assert.deepEqual(
      ["queue.limit", "strict"].map((key) => loaded.settings.isGiven(key)),
      [true, false],
    );
  });

  it("accepts the extra variables of its schema, with its own name first", () => {
    assert.equal(load([], { MODEL_ID: "a" }).model, "a");
    assert.equal(load([], { MODEL_ID: "a", TANDEM_MODEL: "b" }).model, "b");
    assert.equal(load([], { MODEL_ID: "" }).model, "tiny");
  });

  it("changes only the port when a bare port is given, on the host of the source below", () => {
    assert.equal(load(["--port", "9"]).rest.listen, "127.0.0.1:9");
    assert.equal(load(["--port", "9"], { TANDEM_REST_LISTEN: "[::1]:3" }).rest.listen, "[::1]:9");
    assert.equal(load([], { PROXY_PORT: "8" }).rest.listen, "127.0.0.1:8");
    assert.equal(load(["--port", "0.0.0.0:8"]).rest.listen, "0.0.0.0:8");
    assert.equal(load(["--router="], { TANDEM_REGISTRY_ADDRESS: "a:1" }).others.registry, undefined);
  });

  it("reads switches and repeated flags", () => {
    assert.equal(load(["--strict"]).strict, true);
    assert.equal(load(["--no-strict"], { TANDEM_STRICT: "1" }).strict, false);
    assert.equal(load(["--strict=false"]).strict, false);
    assert.deepEqual(load(["--engine.flag", "a,b", "--engine.flag=--x=1"]).others.engineFlags, ["a,b", "--x=1"]);
    assert.deepEqual(load([], { TANDEM_ENGINE_FLAG: "a, b" }).others.engineFlags, ["a", "b"]);
  });

  it("reads several addresses, each as one is read", () => {
    assert.deepEqual(load([]).others.peers, ["127.0.0.1:1"]);
    assert.deepEqual(load(["--peers", "a:1, 2", "--peers=[::1]:3"]).others.peers, ["a:1", "127.0.0.1:2", "[::1]:3"]);
    assert.deepEqual(load(["--peers=7"], { TANDEM_PEERS: "b:1,c:2" }).others.peers, ["b:7"]);
    assert.deepEqual([load(["--peers="]).others.peers, load([], { TANDEM_PEERS: "" }).others.peers], [[], []]);
    refuses(
      ["--peers", "a:1,b"],
      /--peers: expected host:port.*, or several of them, got \["a:1,b"\]; it is not an address/,
    );
    refuses([], /TANDEM_PEERS: .*the port is too large/, { TANDEM_PEERS: "a:1,b:65536" });
  });

  it("never shows a secret", () => {
    const loaded = load(["--token", "hush"]);
    assert.equal(loaded.rest.token, "hush");
    assert.equal(shownOf(loaded, "token")?.value, "set");
    assert.equal(shownOf(load([]), "token")?.value, "unset");
  });

  it("names the nearest key for an unknown one", () => {
    refuses(["--queue.limt", "5"], /no flag --queue\.limt; did you mean --queue\.limit\? "tandem router --help"/);
    refuses(["--prot", "5"], /did you mean --port\?/);
    refuses(["--nothing-like-it-at-all"], /no flag --nothing-like-it-at-all\. "tandem router --help"/);
    refuses([], /TANDEM_QUEUE_LIMT is not a variable of router; did you mean TANDEM_QUEUE_LIMIT\?/, {
      TANDEM_QUEUE_LIMT: "5",
    });
    assert.equal(load([], { TANDEM_DECODE_SLOTS: "3", TANDEMONIUM: "1" }).model, "tiny"); // Another process's, another program's.
  });

  it("says which value it expected for a bad one", () => {
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

  it("names every bad value at once", () => {
    const all = /TANDEM_STRICT: .* it is neither true nor false\. --queue\.limit: .* it is too small\./;
    refuses(["--queue.limit", "-1"], all, { TANDEM_STRICT: "maybe" });
  });

  it("refuses an ambiguous command line", () => {
    refuses(["--port", "1", "--rest.listen", "a:2"], /--port and --rest\.listen both set rest\.listen/);
    refuses(["--model", "a", "--model", "b"], /--model is given twice/);
    refuses(["--model"], /--model needs a value: text/);
    refuses(["--model", "--strict"], /a value that starts with -- is written --model=--strict/);
    refuses(["up"], /"up" is not a flag/);
    refuses(["--strict", "false"], /"false" is not a flag/);
    refuses(["--no-model"], /no flag --no-model/);
    refuses(["--config", "a", "--config", "b"], /--config is given twice/);
  });

  it("names a required setting that is missing", () => {
    const needy = defineConfig("needy", { url: text("engine.url", "Where.", { alias: "attach" }) });
    assert.throws(
      () => loadConfig(needy, { argv: [], env: {} }),
      /needy needs engine\.url: give --attach, text, or set TANDEM_ENGINE_URL/,
    );
  });

  it("can't be changed", () => {
    const loaded = load([]);
    assert.throws(() => ((loaded as { model: string }).model = "x"), TypeError);
    assert.throws(() => ((loaded.rest as { token: string }).token = "x"), TypeError);
    assert.throws(() => ((loaded.queue.current as { limit: number }).limit = 1), TypeError);
  });

  it("throws the help text for --help, with any other arguments", () => {
    for (const argv of [
      ["--port", "1", "--help"],
      ["-h", "--config", "/none"],
    ])
      assert.throws(
        () => load(argv),
        (error: unknown) => error instanceof config.PrintAndExit && error.text.startsWith("Admits"),
      );
  });

  it("throws all settings with their origins for --print-config", () => {
    assert.throws(
      () => load(["--print-config", "--port", "4000", "--token", "hush"]),
      (error: unknown) => {
        assert.ok(error instanceof config.PrintAndExit);
        assert.match(error.text, /^rest\.listen = 127\.0\.0\.1:4000 \(flag --port\)$/m);
        assert.match(error.text, /^queue\.limit = 256 requests \(default\)$/m);
        assert.match(error.text, /^token = set \(flag --token\)$/m);
        return true;
      },
    );
  });

  it("takes dashes for dots and underscores in flags", () => {
    assert.equal(load(["--queue-timeout-ms", "5"]).queue.current.timeoutMs, 5);
    assert.equal(load(["--queue.timeout-ms", "6"]).queue.current.timeoutMs, 6);
    assert.equal(load(["--rest-listen", "7"]).rest.listen, "127.0.0.1:7");
    refuses(["--queue-timeout-ms", "5", "--queue.timeout_ms", "6"], /both set queue\.timeout_ms/);
  });

  it("takes all words after -- for the list that its definition names", () => {
    assert.deepEqual(load(["--strict", "--", "--dtype", "float16"]).others.engineFlags, ["--dtype", "float16"]);
    const plain = defineConfig("plain", { model: text("model", "", { default: "" }) });
    assert.throws(() => loadConfig(plain, { argv: ["--", "x"], env: {} }), /"--" is not a flag of plain/);
  });

  it("says what replaces a removed setting, in any source", async () => {
    const gone = /is no longer a setting: queue\.timeout_ms is the longest wait\./;
    refuses(["--queue.patience_ms", "5"], new RegExp(`^--queue.patience_ms ${gone.source}`));
    refuses(["--queue-patience-ms=5"], gone);
    refuses(["--no-queue-patience-ms"], new RegExp(`^--no-queue-patience-ms ${gone.source}`));
    refuses([], new RegExp(`^TANDEM_QUEUE_PATIENCE_MS ${gone.source}`), { TANDEM_QUEUE_PATIENCE_MS: "5" });
    await using file = await configFile("queue: {patience_ms: 5}");
    refuses(["--config", file.path], new RegExp(`:1: queue.patience_ms ${gone.source}`));
  });
});

describe("settings that change while the process runs", () => {
  const change = (loaded: ReturnType<typeof load>, texts: Record<string, string>) =>
    loaded.settings.change(new Map(Object.entries(texts)), "consul tandem/config/");

  it("beat every other source, say where they came from, and go back when they are gone", () => {
    const loaded = load(["--queue.limit", "8"]);
    const { queue } = loaded;
    const before = queue.current;
    const changed = { key: "queue.limit", value: "512 requests", origin: "consul tandem/config/queue.limit" };
    assert.deepEqual(change(loaded, { "queue.limit": "512" }), [changed]);
    assert.deepEqual([queue.current.limit, before.limit], [512, 8], "what was read before stays as it was");
    assert.deepEqual(shownOf(loaded, "queue.limit"), changed);
    assert.deepEqual(change(loaded, { "queue.limit": "512" }), []);
    assert.deepEqual(
      change(loaded, {}).map(({ value, origin }) => `${value} (${origin})`),
      ["8 requests (flag --queue.limit)"],
    );
    assert.equal(queue.current.limit, 8);
  });

  it("replace their own section only", () => {
    const loaded = load([]);
    const { queue, placement } = loaded;
    const [queueBefore, placementBefore] = [queue.current, placement.current];
    change(loaded, { "prefill.policy": "round-robin" });
    assert.equal(queue.current, queueBefore);
    assert.notEqual(placement.current, placementBefore);
    assert.equal(placement.current.prefill, "round-robin");
  });

  it("are applied all or not at all, and every fault is named", () => {
    const loaded = load([]);
    change(loaded, { "queue.limit": "512" });
    const texts = { "queue.limit": "-1", "queue.limt": "1", strict: "true", "prefill.policy": "round-robin" };
    assert.throws(
      () => change(loaded, texts),
      (error: unknown) =>
        error instanceof config.ConfigError &&
        /queue\.limt is not a setting; did you mean queue\.limit\?/.test(error.message) &&
        /strict can't change while the process runs/.test(error.message) &&
        /queue\.limit: expected an integer .*, got "-1"; it is too small/.test(error.message),
    );
    assert.equal(loaded.queue.current.limit, 512);
    assert.equal(loaded.placement.current.prefill, "least-load");
  });
});

describe("the definition of a configuration", () => {
  it("refuses two settings with one name, and a default outside its own range", () => {
    const empty = { default: "" };
    assert.throws(
      () => defineConfig("x", { a: text("a", "", empty), b: text("b", "", { ...empty, alias: "a" }) }),
      /both a and b answer to a/,
    );
    assert.throws(
      () => defineConfig("x", { a: text("a.b", "", empty), s: section("S", { b: text("a_b", "", empty) }) }),
      /both a\.b and a_b/,
    );
    assert.throws(() => defineConfig("x", { a: integer("a", "", { default: 5, max: 4 }) }), /too large/);
    assert.throws(() => defineConfig("x", { a: text("camelCase", "", empty) }), /snake_case/);
    assert.throws(() => defineConfig("x", { a: text("config", "", empty) }), /--config/);
  });
});

describe("--help", () => {
  it("lists every setting by section, with unit, default, variables and meaning", () => {
    const help = helpText(definition);
    for (const [key, option] of definition.options) {
      assert.match(help, new RegExp(`--${key.replace(".", "\\.")}\\b`));
      assert.ok(help.includes(option.doc), `${key}: its doc is missing`);
    }
    assert.match(help, /^Admits, places and relays\.\n\nUsage: tandem router/);
    assert.match(help, /\nOpenAI REST\n {2}--port, --rest\.listen HOST:PORT\n/);
    assert.match(
      help,
      /from 0 to 65536 \(requests\); default 256 requests; env TANDEM_QUEUE_LIMIT; can\s+change while the process runs/,
    );
    assert.ok(help.indexOf("--model") < help.indexOf("OpenAI REST"), "settings without a section come first");
    assert.ok(
      help.split("\n").every((line) => line.length <= 110),
      "no line is too long for a terminal",
    );
  });
});
