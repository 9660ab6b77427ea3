// Settings of `tandem up`. The names of the BentoML example that Tandem grew from still work as variables.
import { address, boolean, choice, ConfigError, defineConfig, integer, list, secret, settingsOf, text } from "../../../services/common/config.ts";
import type { Config } from "../../../services/common/config.ts";

export const upConfig = defineConfig(
  "up",
  {
    "prefill": integer({ default: 1, min: 1, max: 64, unit: "instances", env: ["NUM_PREFILL", "num_prefill"],
      doc: "Prefill instances to start." }),
    "decode": integer({ default: 1, min: 1, max: 64, unit: "instances", env: ["NUM_DECODE", "num_decode"],
      doc: "Decode instances to start." }),
    "engine.kind": choice(["sim", "embedded", "vllm"], { default: "sim", alias: "engine",
      doc: "What computes. sim: a simulated engine that runs anywhere. embedded and vllm arrive in a later version; until then --attach-prefill and --attach-decode wrap vLLM servers that run already." }),
    "rest.listen": address({ default: "127.0.0.1:3000", alias: "port", env: ["PROXY_PORT"],
      doc: "Where OpenAI clients connect. --port 0 takes a free port." }),
    "grpc.listen": address({ default: "127.0.0.1:3001", alias: "grpc-port",
      doc: "Where gRPC clients and the instances connect. --grpc-port 0 takes a free port." }),
    "attach.prefill": list({ alias: "attach-prefill",
      doc: "URL of a running vLLM server to wrap as a prefill instance. Repeatable; their number replaces --prefill." }),
    "attach.decode": list({ alias: "attach-decode",
      doc: "URL of a running vLLM server to wrap as a decode instance. Repeatable; their number replaces --decode." }),
    "connector": choice(["p2p-zmq", "p2p-nccl", "nixl"], { optional: true,
      doc: "How KV moves between engines. Left out: p2p-zmq with the sim, nixl with attached servers." }),
    "engine.flag": list({ doc: "A flag for every engine that is started, passed on as it is: --engine.flag=--sim.decode_ms_per_token=20. Repeatable." }),
    "model": text({ optional: true, env: ["MODEL_ID"], doc: "Name under which clients ask for the model. Left out: the engine's own." }),
    "prefill.kv_port": integer({ default: 20_001, min: 1, max: 65_000, env: ["PREFILL_KV_PORT"],
      doc: "First of the ports on which prefill engines hand over KV; a taken one is passed over." }),
    "decode.kv_port": integer({ default: 21_001, min: 1, max: 65_000, env: ["DECODE_KV_PORT"],
      doc: "First of the ports on which decode engines receive KV; a taken one is passed over." }),
    "api_key": secret({ alias: "api-key", env: ["OPENAI_API_KEY"],
      doc: "Key that clients of the OpenAI API must send. Without one, anybody on this machine may ask." }),
    "token": secret({ doc: "Join token: who has it may join as an instance and control the run. Left out: a random one." }),
    "hf_token": secret({ env: ["HF_TOKEN"], doc: "Hugging Face token, passed on to vLLM." }),
    "drain.grace_ms": integer({ default: 30_000, min: 0, max: 3_600_000, unit: "ms",
      doc: "How long SIGTERM lets running answers finish." }),
    "state.dir": text({ optional: true, doc: "Folder for logs and run files. Left out: ~/.local/state/tandem." }),
    "verbose": boolean({ default: false, doc: "Show all that the processes log, not only warnings and errors." }),
  },
  {
    summary:
      "Starts a router and instances on this machine, restarts what dies, and ends them all together. Further settings of " +
      "those processes are given as variables, which all of them see: TANDEM_QUEUE_LIMIT=16 tandem up.",
    usage: "tandem up [--prefill N] [--decode M] [--engine sim] [--port 3000] [--grpc-port 3001]",
  },
);

export type UpConfig = Config<typeof upConfig.schema>;

/** @throws ConfigError for settings that are each fine and don't go together. */
export function checkUpConfig(config: UpConfig): void {
  const attached = config["attach.prefill"].length > 0 || config["attach.decode"].length > 0;
  if (!attached) {
    if (config["engine.kind"] !== "sim") throw new ConfigError(laterVersion(config["engine.kind"]));
    if (config.connector !== undefined && config.connector !== "p2p-zmq") {
      throw new ConfigError(`--connector ${config.connector} needs vLLM servers: give --attach-prefill URL and --attach-decode URL. The sim moves KV by p2p-zmq.`);
    }
    return;
  }
  for (const role of ["prefill", "decode"] as const) {
    const urls = config[`attach.${role}`];
    if (urls.length === 0) throw new ConfigError(`--attach-${role} is missing: a request needs a prefill and a decode instance. Give at least one URL.`);
    for (const url of urls) {
      if (!URL.canParse(url) || !/^https?:/.test(url)) {
        throw new ConfigError(`--attach-${role} ${url}: expected the URL of a vLLM server, such as http://127.0.0.1:8000.`);
      }
    }
    if (given(config, role) && config[role] !== urls.length) {
      throw new ConfigError(`--${role} ${config[role]} and ${urls.length} × --attach-${role} disagree: leave --${role} out, every URL is one instance.`);
    }
  }
  if (given(config, "engine.kind") && config["engine.kind"] !== "vllm") {
    throw new ConfigError(`--engine ${config["engine.kind"]} and --attach-prefill/--attach-decode exclude each other: attached servers are engines already.`);
  }
  if (config.connector === "p2p-nccl") {
    throw new ConfigError("--connector p2p-nccl: each attached engine's KV address must be known, which `up` has no flag for. Start the wrappers one by one: tandem router, then tandem prefill|decode --attach URL --connector p2p-nccl --engine.kv_address HOST:PORT.");
  }
}

export function isAttached(config: UpConfig): boolean {
  return config["attach.prefill"].length > 0;
}

function laterVersion(kind: "embedded" | "vllm"): string {
  const instead =
    kind === "vllm"
      ? "Start your vLLM servers yourself and wrap them: tandem up --attach-prefill URL --attach-decode URL --connector nixl"
      : "Use the simulated engine: tandem up --engine sim";
  return `--engine ${kind} arrives in a later version of Tandem. ${instead}`;
}

function given(config: UpConfig, key: keyof UpConfig & string): boolean {
  return settingsOf(config).find((setting) => setting.key === key)?.origin !== "default";
}
