import assert from "node:assert/strict";
import { ConfigError, loadConfig } from "../../../services/common/config.ts";
import { shippedModel } from "../../../services/common/package-file.ts";
import { checkUpConfig, nameOf, upConfig, type UpConfig } from "../../../clients/cli/up/config.ts";
import { dialable, planChildren } from "../../../clients/cli/up/plan.ts";

function read(argv: string[], env: Record<string, string> = {}): UpConfig {
  const config = loadConfig(upConfig, { argv, env });
  checkUpConfig(config);
  return config;
}

function plan(argv: string[], env: Record<string, string> = {}): ReturnType<typeof planChildren> {
  const config = read(argv, env);
  return planChildren({
    config,
    ports: { rest: config.restListen, grpc: config.grpcListen },
    token: "t0k3n",
    name: "mine",
    stateDir: "/state",
    env,
  });
}

/** Value of a flag in a command line. */
function flag(argv: readonly string[], name: string): string | undefined {
  return argv.find((word) => word.startsWith(`${name}=`))?.slice(name.length + 1);
}

describe("settings of `tandem up`", () => {
  it("start one instance of each role by default, on the shipped model if this build has it", () => {
    assert.deepEqual(
      plan([]).map((child) => child.name),
      ["router", "prefill-1", "decode-1"],
    );
    assert.equal(flag(plan([])[1]!.argv, "--engine.kind"), shippedModel() === undefined ? "sim" : "embedded");
    assert.equal(flag(plan(["--engine", "sim"])[1]!.argv, "--engine.kind"), "sim");
  });

  it("run a GGUF file on the embedded engine", () => {
    const [, prefill] = plan(["--model", "some/small.gguf", "--served_name", "small"]);
    assert.equal(flag(prefill!.argv, "--engine.kind"), "embedded");
    assert.equal(flag(prefill!.argv, "--model"), "some/small.gguf");
    assert.ok(prefill!.argv.includes("--served_name=small"));
  });

  it("take the names of the BentoML example", () => {
    const env = {
      MODEL_ID: "m",
      PROXY_PORT: "4000",
      PREFILL_KV_PORT: "5001",
      DECODE_KV_PORT: "6001",
      num_prefill: "2",
      NUM_DECODE: "3",
      HF_TOKEN: "hf",
    };
    const children = plan(["--engine", "sim"], env);
    assert.deepEqual(
      children.map((child) => child.name),
      ["router", "prefill-1", "prefill-2", "decode-1", "decode-2", "decode-3"],
    );
    assert.equal(flag(children[0]!.argv, "--rest.listen"), "127.0.0.1:4000");
    assert.deepEqual(
      children.slice(1).map((child) => flag(child.argv, "--kv.listen")),
      ["5001", "5002", "6001", "6002", "6003"],
    );
    assert.ok(children.slice(1).every((child) => flag(child.argv, "--model") === "m"));
    assert.ok(children.every((child) => child.env["HF_TOKEN"] === "hf"));
  });

  it("give every child the join token, the name and the state folder, and none the file of `up`", () => {
    for (const child of plan(["--port", "3100"], {})) {
      assert.equal(child.env["TANDEM_TOKEN"], "t0k3n");
      assert.equal(child.env["TANDEM_DEPLOYMENT_NAME"], "mine");
      assert.equal(child.env["TANDEM_STATE_DIR"], "/state");
      assert.ok(!child.argv.includes("t0k3n"), "a command line can be read by every user");
    }
  });

  it("leave OPENAI_API_KEY to clients, and pass on --api-key", () => {
    assert.equal(plan([], { OPENAI_API_KEY: "sk-env" })[0]!.env["TANDEM_API_KEY"], undefined);
    assert.equal(plan(["--api-key", "sk-flag"], { OPENAI_API_KEY: "sk-env" })[0]!.env["TANDEM_API_KEY"], "sk-flag");
  });

  it("make one instance of every attached server", () => {
    const children = plan([
      "--attach-prefill",
      "http://a:1",
      "--attach-prefill",
      "http://b:1",
      "--attach-decode",
      "http://c:1",
      "--connector",
      "nixl",
    ]);
    assert.deepEqual(
      children.map((child) => [child.name, flag(child.argv, "--engine.attach")]),
      [
        ["router", undefined],
        ["prefill-1", "http://a:1"],
        ["prefill-2", "http://b:1"],
        ["decode-1", "http://c:1"],
      ],
    );
    assert.equal(flag(children[1]!.argv, "--connector"), "nixl");
    assert.equal(flag(children[1]!.argv, "--engine.kind"), undefined);
  });

  it("wrap attached servers with P2P NCCL in one command, with their KV addresses", () => {
    const servers = ["--attach-prefill=http://a:1", "--attach-decode=http://b:1", "--attach-decode=http://c:1"];
    const addresses = ["--attach.prefill_kv=a:21001", "--attach.decode_kv=b:21001", "--attach.decode_kv=c:21002"];
    const children = plan([...servers, ...addresses, "--connector=p2p-nccl"]);
    assert.deepEqual(
      children.map((child) => flag(child.argv, "--engine.kv_address")),
      [undefined, "a:21001", "b:21001", "c:21002"],
    );
  });

  const refusals: [string, string[], RegExp][] = [
    ["a model for the sim", ["--engine", "sim", "--model", "x.gguf"], /runs no model/],
    [
      "a model that is not a GGUF file for the embedded engine",
      ["--engine", "embedded", "--model", "meta-llama/Llama-3.1-8B"],
      /GGUF/,
    ],
    ["a model without an engine that runs it", ["--model", "meta-llama/Llama-3.1-8B"], /--engine vllm.*--engine sim/],
    ["vLLM without a model", ["--engine", "vllm"], /--model/],
    [
      "vLLM with a connector it doesn't have",
      ["--engine", "vllm", "--model", "m", "--connector", "p2p-zmq"],
      /nixl.*p2p-nccl/,
    ],
    [
      "fewer GPUs than instances",
      ["--engine", "vllm", "--model", "m", "--gpus", "0,1+2", "--decode", "2"],
      /2 entries for 3 instances/,
    ],
    [
      "attached servers with P2P NCCL and no KV address",
      ["--attach-prefill", "http://a:1", "--attach-decode", "http://b:1", "--connector", "p2p-nccl"],
      /Give --attach\.prefill_kv HOST:PORT once for each --attach-prefill/,
    ],
    [
      "KV addresses for a connector that needs none",
      ["--attach-prefill", "http://a:1", "--attach-decode", "http://b:1", "--attach.decode_kv", "b:2"],
      /--attach\.decode_kv is for --connector p2p-nccl/,
    ],
    ["attached servers of one role alone", ["--attach-prefill", "http://a:1"], /--attach-decode is missing/],
    [
      "an attached server that is not a URL",
      ["--attach-prefill", "a:1", "--attach-decode", "http://b:1"],
      /--attach-prefill a:1: expected the URL/,
    ],
    [
      "a count that disagrees with the URLs",
      ["--prefill", "2", "--attach-prefill", "http://a:1", "--attach-decode", "http://b:1"],
      /disagree/,
    ],
    [
      "an engine kind beside attached servers",
      ["--engine", "sim", "--attach-prefill", "http://a:1", "--attach-decode", "http://b:1"],
      /exclude each other/,
    ],
    ["a connector that the sim doesn't speak", ["--connector", "nixl"], /needs vLLM servers/],
  ];
  for (const [what, argv, message] of refusals) {
    it(`refuse ${what}`, () => {
      assert.throws(
        () => read(argv),
        (error) => error instanceof ConfigError && message.test(error.message),
      );
    });
  }

  it("pass an engine's flag to all engines, or only to those of the role in its prefix", () => {
    const wordsOf = (argv: readonly string[]): string[] =>
      argv.filter((word) => word.startsWith("--engine.flag=")).map((word) => word.slice("--engine.flag=".length));
    const argv = ["--engine", "sim", "--engine.flag=--a=1,2", "--", "decode:--fault=stall", "prefill:-b", "prefill"];
    const [, prefill, decode] = plan(argv);
    assert.deepEqual(wordsOf(prefill!.argv), ["--a=1,2", "-b", "prefill"]);
    assert.deepEqual(wordsOf(decode!.argv), ["--a=1,2", "--fault=stall", "prefill"]);
    const [, none] = plan(["--engine", "sim"], { TANDEM_ENGINE_FLAG: "decode:--x" });
    assert.deepEqual(wordsOf(none!.argv), []);
    assert.equal(none!.env["TANDEM_ENGINE_FLAG"], undefined, "a child would take the other role's word from it");
  });

  it("never show a secret", () => {
    const config = read(["--token", "hush", "--api-key", "hush", "--hf_token", "hush"]);
    assert.ok(config.settings.all.every((setting) => !setting.value.includes("hush")));
  });
});

describe("the name of a deployment", () => {
  it("is given, or comes from the port", () => {
    assert.equal(nameOf(read(["--name", "blue"]), 3_900), "blue");
    assert.equal(nameOf(read([], { TANDEM_NAME: "green" }), 3_900), "green");
    assert.equal(nameOf(read([]), 3_000), "default");
    assert.equal(nameOf(read([]), 3_900), "port-3900");
  });

  it("is a label that Consul takes", () => {
    for (const name of ["a b", "-a", "x".repeat(64)])
      assert.throws(() => nameOf(read([`--name=${name}`]), 3_000), ConfigError);
  });
});

describe("the address that children dial", () => {
  it("is loopback if the router listens on every interface", () => {
    assert.equal(dialable("0.0.0.0:3001"), "127.0.0.1:3001");
    assert.equal(dialable("[::]:3001"), "[::1]:3001");
    assert.equal(dialable("127.0.0.1:3001"), "127.0.0.1:3001");
  });
});
