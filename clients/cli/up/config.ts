// Settings of `tandem up`. The names of the BentoML example that Tandem grew from still work as variables.
import {
  address,
  boolean,
  choice,
  ConfigError,
  defineConfig,
  integer,
  list,
  secret,
  settingsOf,
  text,
} from "../../../services/common/config.ts";
import type { Config } from "../../../services/common/config.ts";
import { ENGINE_KINDS, type EngineKind } from "../../../services/engine/engine.ts";
import { CONNECTOR_NAMES } from "../../../services/kv/index.ts";
import { stateDirSetting } from "../../../services/common/state-dir.ts";
import { defaultEngineKind, isGguf } from "../../../services/common/default-engine.ts";

export const upConfig = defineConfig(
  "up",
  {
    prefill: integer({
      default: 1,
      min: 1,
      max: 64,
      unit: "instances",
      env: ["NUM_PREFILL", "num_prefill"],
      doc: "Prefill instances to start.",
    }),
    decode: integer({
      default: 1,
      min: 1,
      max: 64,
      unit: "instances",
      env: ["NUM_DECODE", "num_decode"],
      doc: "Decode instances to start.",
    }),
    "engine.kind": choice(ENGINE_KINDS, {
      optional: true,
      alias: "engine",
      doc: "What computes. embedded: a small language model on this CPU, the one that ships or --model FILE.gguf. vllm: large ones; give --model. sim: a simulation. Left out: embedded, where its model is there. --attach-prefill and --attach-decode wrap vLLM servers that run already.",
    }),
    "rest.listen": address({
      default: "127.0.0.1:3000",
      alias: "port",
      env: ["PROXY_PORT"],
      doc: "Where OpenAI clients connect. --port 0 takes a free port.",
    }),
    "grpc.listen": address({
      default: "127.0.0.1:3001",
      alias: "grpc-port",
      doc: "Where gRPC clients and the instances connect. --grpc-port 0 takes a free port.",
    }),
    "attach.prefill": list({
      alias: "attach-prefill",
      doc: "URL of a running vLLM server to wrap as a prefill instance. Repeatable; their number replaces --prefill.",
    }),
    "attach.decode": list({
      alias: "attach-decode",
      doc: "URL of a running vLLM server to wrap as a decode instance. Repeatable; their number replaces --decode.",
    }),
    discover: address({
      optional: true,
      doc: "Starts no engines: adopts vLLM engines with P2P NCCL that ping this address, 127.0.0.1:30001 in vLLM's own examples. They may come and go.",
    }),
    connector: choice(CONNECTOR_NAMES, {
      optional: true,
      doc: "How KV moves between engines. Left out: p2p-zmq with the sim and the embedded engine, nixl with vLLM.",
    }),
    "engine.flag": list({
      doc: "A word for the command line of every engine that is started, passed on as it is: --engine.flag=--sim.decode_ms_per_token=20. Repeatable; all words after -- are meant so too.",
    }),
    "prefill.engine_flag": list({ doc: "The same for prefill engines alone." }),
    "decode.engine_flag": list({ doc: "The same for decode engines alone." }),
    "vllm.command": text({
      optional: true,
      doc: "The vLLM to start, where it is not the one of the active virtual environment or the PATH.",
    }),
    gpus: text({
      optional: true,
      doc: "GPUs for vLLM, one entry an instance, prefill first: 0,1,2. An instance with several has them joined by +: 0+1,2+3. Left out: GPU 0 for the first, 1 for the second and so on, where CUDA_VISIBLE_DEVICES doesn't say which.",
    }),
    served_name: text({
      optional: true,
      doc: "Name under which vLLM or the embedded engine serves its model. Left out: its id, or what its file says.",
    }),
    model: text({
      optional: true,
      env: ["MODEL_ID"],
      doc: "FILE.gguf: a small Llama for the embedded engine. With --engine vllm an id of Hugging Face or a folder. With --engine sim the name under which clients ask for it.",
    }),
    consul: boolean({
      default: false,
      doc: "Register everything in Consul: in the agent at CONSUL_HTTP_ADDR or 127.0.0.1:8500, or else in one that is started in dev mode.",
    }),
    "prefill.kv_port": integer({
      default: 20_001,
      min: 1,
      max: 65_000,
      env: ["PREFILL_KV_PORT"],
      doc: "First of the ports on which prefill engines hand over KV; a taken one is passed over.",
    }),
    "decode.kv_port": integer({
      default: 21_001,
      min: 1,
      max: 65_000,
      env: ["DECODE_KV_PORT"],
      doc: "First of the ports on which decode engines receive KV; a taken one is passed over.",
    }),
    api_key: secret({
      alias: "api-key",
      doc: "Key that clients of the OpenAI API must send. Without one, anybody on this machine may ask.",
    }),
    token: secret({
      doc: "Join token: who has it may join as an instance and control the run. Left out: a random one.",
    }),
    hf_token: secret({ env: ["HF_TOKEN"], doc: "Hugging Face token, passed on to vLLM." }),
    "drain.grace_ms": integer({
      default: 30_000,
      min: 0,
      max: 3_600_000,
      unit: "ms",
      doc: "How long SIGTERM lets running answers finish.",
    }),
    "deployment.name": text({
      optional: true,
      alias: "name",
      env: ["TANDEM_NAME"],
      doc: "Name of the deployment, by which `tandem status --name` and others find it and deployments on one Consul are told apart. Left out: default on port 3000, port-N on port N.",
    }),
    ...stateDirSetting,
    "logs.limit_mib": integer({
      default: 256,
      min: 1,
      max: 65_536,
      unit: "MiB",
      doc: "Size of all log files of this run. Each process has an equal share; its oldest lines go first.",
    }),
    verbose: boolean({ default: false, doc: "Show all that the processes log, not only warnings and errors." }),
  },
  {
    summary:
      "Starts a router and instances on this machine, restarts what dies, and ends them all together. Further settings of " +
      "those processes are given as variables, which all of them see: TANDEM_QUEUE_LIMIT=16 tandem up.",
    usage:
      "tandem up [--prefill N] [--decode M] [--model FILE.gguf] [--engine sim] [--engine vllm --model ID] [--port 3000] [--grpc-port 3001] [-- FLAGS OF THE ENGINE]",
  },
);

export type UpConfig = Config<typeof upConfig.schema>;

/** @throws ConfigError for settings that are each fine and don't go together. */
export function checkUpConfig(config: UpConfig): void {
  if (config.discover !== undefined) {
    const other = ["engine.kind", "prefill", "decode", "attach.prefill", "attach.decode", "connector"].find((key) =>
      given(config, key as keyof UpConfig & string),
    );
    if (other !== undefined)
      throw new ConfigError(
        `--discover and --${other} exclude each other: engines that ping bring their role and their connector.`,
      );
    return;
  }
  const attached = config["attach.prefill"].length > 0 || config["attach.decode"].length > 0;
  if (!attached) {
    const kind = engineKind(config);
    if (kind === "vllm") return checkVllm(config);
    if (kind === "sim" && isGguf(config.model))
      throw new ConfigError(`--engine sim runs no model: leave out --model ${config.model}, or --engine sim.`);
    if (kind === "embedded" && config.model !== undefined && !isGguf(config.model)) {
      throw new ConfigError(
        `--engine embedded runs GGUF files, and --model ${config.model} is not named like one. --served_name sets the name for clients.`,
      );
    }
    if (config.connector !== undefined && config.connector !== "p2p-zmq") {
      throw new ConfigError(
        `--connector ${config.connector} needs vLLM servers: give --attach-prefill URL and --attach-decode URL. The ${kind === "sim" ? "sim" : "embedded engine"} moves KV by p2p-zmq.`,
      );
    }
    return;
  }
  for (const role of ["prefill", "decode"] as const) {
    const urls = config[`attach.${role}`];
    if (urls.length === 0)
      throw new ConfigError(
        `--attach-${role} is missing: a request needs a prefill and a decode instance. Give at least one URL.`,
      );
    for (const url of urls) {
      if (!URL.canParse(url) || !/^https?:/.test(url)) {
        throw new ConfigError(
          `--attach-${role} ${url}: expected the URL of a vLLM server, such as http://127.0.0.1:8000.`,
        );
      }
    }
    if (given(config, role) && config[role] !== urls.length) {
      throw new ConfigError(
        `--${role} ${config[role]} and ${urls.length} × --attach-${role} disagree: leave --${role} out, every URL is one instance.`,
      );
    }
  }
  if (given(config, "engine.kind") && config["engine.kind"] !== "vllm") {
    throw new ConfigError(
      `--engine ${config["engine.kind"]} and --attach-prefill/--attach-decode exclude each other: attached servers are engines already.`,
    );
  }
  if (config.connector === "p2p-nccl") {
    throw new ConfigError(
      "--connector p2p-nccl: each attached engine's KV address must be known, which `up` has no flag for. Start the wrappers one by one: tandem router, then tandem prefill|decode --attach URL --connector p2p-nccl --engine.kv_address HOST:PORT.",
    );
  }
}

/** Of a deployment on the default port. */
export const DEFAULT_NAME = "default";
const NAME = /^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$/;

/** @throws ConfigError for a name that Consul would not take as a tag. */
export function nameOf(config: UpConfig, restPort: number): string {
  const name = config["deployment.name"] ?? (restPort === 3000 ? DEFAULT_NAME : `port-${restPort}`);
  if (!NAME.test(name)) throw new ConfigError(`--name ${name}: expected 1 to 63 letters, digits and hyphens.`);
  return name;
}

export function isAttached(config: UpConfig): boolean {
  return config["attach.prefill"].length > 0;
}

/** What is started where nothing is attached: as asked for, or what can be run here. */
export function engineKind(config: UpConfig): EngineKind {
  return config["engine.kind"] ?? defaultEngineKind(config.model);
}

function checkVllm(config: UpConfig): void {
  if (config.model === undefined) {
    throw new ConfigError(
      "--engine vllm needs a model: --model ID of Hugging Face, such as meta-llama/Llama-3.1-8B-Instruct, or the path of a folder.",
    );
  }
  if (config.connector === "p2p-zmq") {
    throw new ConfigError(
      "--connector p2p-zmq is for the sim. vLLM moves KV by nixl (from 0.24 on) or p2p-nccl (up to 0.23).",
    );
  }
  const instances = config.prefill + config.decode;
  const given = gpusOf(config);
  if (given !== undefined && given.length !== instances) {
    throw new ConfigError(
      `--gpus ${config.gpus}: that is ${given.length} of ${instances} instances. Give one entry each, prefill first; GPUs of one instance are joined by +. Several may share one: 0,0.`,
    );
  }
}

/** The CUDA_VISIBLE_DEVICES of each instance, prefill first; undefined where they are not given. */
export function gpusOf(config: UpConfig): readonly string[] | undefined {
  return config.gpus?.split(",").map((entry) => entry.trim().replaceAll("+", ","));
}

function given(config: UpConfig, key: keyof UpConfig & string): boolean {
  return settingsOf(config).find((setting) => setting.key === key)?.origin !== "default";
}
