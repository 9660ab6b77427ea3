// The command line of vLLM, against what protocol notes and GPUs taught: section numbers are those of docs/vllm.md.
import assert from "node:assert/strict";
import { ConfigError } from "../../services/common/config.ts";
import {
  connectorFault,
  ranksOf,
  servedNameOf,
  vllmCommand,
  type VllmOptions,
} from "../../services/engine/vllm-command.ts";

const BASE: VllmOptions = {
  role: "prefill",
  connector: "nixl",
  version: "0.32.0+cpu",
  model: "/models/tiny",
  servedName: "",
  socketPath: "/run/engine.sock",
  kvHost: "127.0.0.1",
  kvPort: 20_007,
  slots: 64,
  gpus: "",
  poolGib: 4,
  pingAddress: "",
  flags: [],
};
const P2P = { ...BASE, connector: "p2p-nccl", version: "0.23.0", model: "org/Model-8B" } as const;

const valueOf = (args: readonly string[], flag: string): string | undefined => {
  const at = args.indexOf(flag);
  assert.equal(args.lastIndexOf(flag), at, `${flag} is given twice`);
  return at === -1 ? undefined : args[at + 1];
};
const kvConfig = (args: readonly string[]): any => JSON.parse(valueOf(args, "--kv-transfer-config")!);

describe("vLLM's command line", () => {
  it("serves on a socket, counts its tokens, and fetches no media", () => {
    const { args, env } = vllmCommand(BASE);
    assert.deepEqual(args.slice(0, 2), ["serve", "/models/tiny"]);
    assert.equal(valueOf(args, "--uds"), "/run/engine.sock");
    for (const flag of ["--host", "--port"]) assert.equal(valueOf(args, flag), undefined);
    assert.equal(valueOf(args, "--allowed-media-domains"), "media.invalid");
    assert.equal(env["VLLM_MEDIA_URL_ALLOW_REDIRECTS"], "0");
    assert.equal(valueOf(args, "--allowed-local-media-path"), undefined);
    assert.equal(valueOf(args, "--max-num-seqs"), "64");
    assert.equal(valueOf(args, "--served-model-name"), "tiny");
    for (const name of [
      "VLLM_USE_RUST_FRONTEND",
      "VLLM_SERVER_DEV_MODE",
      "VLLM_API_KEY",
      "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",
    ]) {
      assert.ok(name in env && env[name] === undefined, `${name} is not inherited`);
    }
  });

  it("gives each flag once if a user opens media, bounds sequences or adds flags", () => {
    const flags = ["--allowed-media-domains", "a.example", "--max_num_seqs=8", "--dtype", "float16"];
    const { args } = vllmCommand({ ...BASE, flags });
    assert.equal(valueOf(args, "--allowed-media-domains"), "a.example");
    assert.equal(valueOf(args, "--max-num-seqs"), undefined);
    assert.deepEqual(args.slice(-flags.length), flags);
  });

  it("names a folder by its last part and leaves ids alone", () => {
    assert.equal(servedNameOf("/a/b/Llama-3/"), "Llama-3");
    assert.equal(servedNameOf("./m"), "m");
    assert.equal(servedNameOf("meta-llama/Llama-3.1-8B"), "meta-llama/Llama-3.1-8B");
    assert.equal(valueOf(vllmCommand({ ...BASE, servedName: "chat" }).args, "--served-model-name"), "chat");
  });

  it("counts the KV ports that its ranks take", () => {
    assert.deepEqual(
      [[], ["-tp", "2"], ["--tensor_parallel_size=4", "-pp", "2"], ["-tp", "x"]].map(ranksOf),
      [1, 2, 8, 1],
    );
  });

  it("shows each instance its own GPUs", () => {
    assert.equal(vllmCommand({ ...BASE, gpus: "2,3" }).env["CUDA_VISIBLE_DEVICES"], "2,3");
    assert.equal("CUDA_VISIBLE_DEVICES" in vllmCommand(BASE).env, false);
  });

  describe("with NIXL", () => {
    it("has a side channel of its own, roles of its own, and no silent recompute", () => {
      for (const [role, kvRole] of [
        ["prefill", "kv_producer"],
        ["decode", "kv_consumer"],
      ] as const) {
        const { args, env } = vllmCommand({ ...BASE, role });
        assert.deepEqual(kvConfig(args), {
          kv_connector: "NixlConnector",
          kv_role: kvRole,
          kv_buffer_device: "cpu",
          kv_load_failure_policy: "fail",
        });
        assert.equal(env["VLLM_NIXL_SIDE_CHANNEL_HOST"], "127.0.0.1");
        assert.equal(env["VLLM_NIXL_SIDE_CHANNEL_PORT"], "20007");
      }
    });

    it("uses kv_both before 0.23, and the GPU's memory where there is one", () => {
      for (const [version, kvRole] of [
        ["0.22.1", "kv_both"],
        ["0.23.0", "kv_producer"],
      ] as const) {
        const { args } = vllmCommand({ ...BASE, role: "prefill", version });
        assert.deepEqual(kvConfig(args), {
          kv_connector: "NixlConnector",
          kv_role: kvRole,
          kv_load_failure_policy: "fail",
        });
      }
    });
  });

  describe("with P2P NCCL", () => {
    it("gives prefill no graphs and no chunks", () => {
      const { args, env } = vllmCommand({ ...P2P, flags: ["--max-model-len", "10000"] });
      assert.deepEqual(kvConfig(args), {
        kv_connector: "P2pNcclConnector",
        kv_role: "kv_producer",
        kv_buffer_size: "1e1",
        kv_port: "20007",
        kv_connector_extra_config: {
          send_type: "PUT_ASYNC",
          nccl_num_channels: "16",
          http_port: "20007",
          mem_pool_size_gb: 4,
        },
      });
      assert.ok(args.includes("--enforce-eager") && args.includes("--no-enable-chunked-prefill"));
      assert.equal(valueOf(args, "--max-num-batched-tokens"), "10000");
      assert.equal(valueOf(args, "--gpu-memory-utilization"), "0.9");
      assert.equal(env["VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"], "1");
      assert.equal(env["VLLM_HOST_IP"], "127.0.0.1");
    });

    it("gives decode piecewise graphs only, and leaves room for received KV", () => {
      const { args, env } = vllmCommand({ ...P2P, role: "decode" });
      const config = kvConfig(args);
      assert.equal(config.kv_role, "kv_consumer");
      assert.equal(config.kv_buffer_size, "8e9");
      assert.deepEqual(JSON.parse(valueOf(args, "--compilation-config")!), { cudagraph_mode: "PIECEWISE" });
      assert.equal(valueOf(args, "--gpu-memory-utilization"), "0.7");
      assert.equal(args.includes("--enforce-eager"), false);
      assert.equal(env["VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"], "1");
    });

    it("pings the address that it is given, with the port as text", () => {
      const extra = kvConfig(vllmCommand({ ...P2P, pingAddress: "127.0.0.1:30001" }).args).kv_connector_extra_config;
      assert.equal(extra.proxy_ip, "127.0.0.1");
      assert.equal(extra.proxy_port, "30001");
    });

    it("allows eager decode, and refuses graphs that would not load KV", () => {
      const decode = { ...P2P, role: "decode" } as const;
      assert.equal(
        valueOf(vllmCommand({ ...decode, flags: ["--enforce-eager"] }).args, "--compilation-config"),
        undefined,
      );
      vllmCommand({ ...decode, flags: ["--compilation-config", '{"cudagraph_mode":"NONE"}'] });
      for (const flags of [
        ["--compilation-config", '{"cudagraph_mode":"FULL"}'],
        ["-O", "3"],
        ["-cc.cudagraph_mode=FULL"],
        ["--compilation-config={}"],
        ["--compilation-config", '{"cudagraph_mode":"PIECEWISE"}', "-O3"],
        ["--compilation-config", '{"cudagraph_mode":"PIECEWISE"}', "--compilation_config", '{"cudagraph_mode":"FULL"}'],
      ]) {
        assert.throws(() => vllmCommand({ ...decode, flags }), /PIECEWISE/);
      }
      for (const flags of [["--enable-chunked-prefill"], ["--no-enforce-eager"]])
        assert.throws(() => vllmCommand({ ...P2P, flags }), ConfigError);
      assert.throws(() => vllmCommand({ ...P2P, flags: ["--speculative-config", "{}"] }), /speculative/);
    });

    it("needs an IPv4 address", () => {
      for (const kvHost of ["localhost", "::1", "gpu.example"])
        assert.throws(() => vllmCommand({ ...P2P, kvHost }), /IPv4/);
    });
  });

  it("is refused for a version that can't move KV this way, naming one that can", () => {
    assert.match(connectorFault("p2p-nccl", "0.24.0")!, /0\.24.*nixl.*0\.23\.0/);
    assert.match(connectorFault("p2p-nccl", "0.11.0")!, /0\.23\.0/);
    assert.match(connectorFault("p2p-nccl", "0.23.0+cpu")!, /CPU/);
    assert.match(connectorFault("nixl", "0.21.1")!, /0\.22/);
    assert.match(connectorFault("p2p-zmq", "0.32.0")!, /no connector/);
    for (const version of ["0.22.0", "0.23.0", "0.32.0+cpu", "1.0"])
      assert.equal(connectorFault("nixl", version), undefined);
    for (const version of ["0.20.2", "0.23.0", "0.23.1rc1+cu130"])
      assert.equal(connectorFault("p2p-nccl", version), undefined);
    assert.throws(() => vllmCommand({ ...BASE, connector: "p2p-nccl" }), ConfigError);
  });

  describe("refuses flags that would open, blind or unpair the engine:", () => {
    const refused: readonly (readonly string[])[] = [
      ["--host", "0.0.0.0"],
      ["--port=80"],
      ["--kv-transfer-config", "{}"],
      ["--kv_transfer_config={}"],
      ["--kv-transfer-config.kv_role", "kv_both"],
      ["--kv-transfer", "{}"],
      ["--disable-log-stats"],
      ["--disable_log_stats"],
      ["--disable-log-st"],
      ["--served-model-name", "x"],
      ["--model", "y"],
      ["--api-key", "k"],
      ["--data-parallel-size", "2"],
      ["-dp", "2"],
      ["--data-parallel-rank=1"],
      ["--config", "f.yaml"],
      ["--api-server-count", "2"],
      ["--uds", "/s"],
      ["--grpc"],
      ["--tokens-only"],
      ["--ssl-keyfile", "k"],
      ["--ec-transfer-config", "{}"],
    ];
    for (const flags of refused) {
      it(flags.join(" "), () =>
        assert.throws(
          () => vllmCommand({ ...BASE, flags }),
          (error) => error instanceof ConfigError && /can't be given: \S/.test(error.message),
        ),
      );
    }
    it("and no others", () => {
      vllmCommand({
        ...BASE,
        flags: [
          "--dtype",
          "float32",
          "--max-model-len",
          "-1",
          "--tensor-parallel-size",
          "2",
          "--hf-overrides",
          '{"port":1}',
          "--enforce-eager",
          "--model-loader-extra-config",
          "{}",
        ],
      });
    });
  });
});
