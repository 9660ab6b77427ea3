// Settings of `tandem up`. The names of the BentoML example that Tandem grew from still work as variables.
import {
  address,
  boolean,
  choice,
  ConfigError,
  defineConfig,
  integer,
  milliseconds,
  list,
  secret,
  section,
  text,
} from "../../../services/common/config.ts";
import type { Config } from "../../../services/common/config.ts";
import { ENGINE_KINDS, type EngineKind } from "../../../services/engine/engine.ts";
import { CONNECTOR_NAMES } from "../../../services/kv/index.ts";
import { stateDir } from "../../../services/common/state-dir.ts";
import { defaultEngineKind, isGguf } from "../../../services/common/default-engine.ts";

export const upConfig = defineConfig(
  "up",
  {
    prefill: integer("prefill", "Prefill instances to start.", {
      default: 1,
      min: 1,
      max: 64,
      unit: "instances",
      env: ["NUM_PREFILL", "num_prefill"],
    }),
    decode: integer("decode", "Decode instances to start.", {
      default: 1,
      min: 1,
      max: 64,
      unit: "instances",
      env: ["NUM_DECODE", "num_decode"],
    }),
    engineKind: choice(
      "engine.kind",
      "What computes. embedded: a small language model on this CPU, the one that ships or --model FILE.gguf. vllm: large ones; give --model. sim: a simulation. Left out: embedded, where its model is there. --attach-prefill and --attach-decode wrap vLLM servers that run already.",
      ENGINE_KINDS,
      { optional: true, alias: "engine" },
    ),
    model: text(
      "model",
      "FILE.gguf: a small Llama for the embedded engine. With --engine vllm an id of Hugging Face or a folder. With --engine sim the name under which clients ask for it.",
      { optional: true, env: ["MODEL_ID"] },
    ),
    deploymentName: text(
      "deployment.name",
      "Name of the deployment, by which `tandem status --name` and others find it and deployments on one Consul are told apart. Left out: default on port 3000, port-N on port N.",
      { optional: true, alias: "name", env: ["TANDEM_NAME"] },
    ),
    restListen: address("rest.listen", "Where OpenAI clients connect. --port 0 takes a free port.", {
      default: "127.0.0.1:3000",
      alias: "port",
      env: ["PROXY_PORT"],
    }),
    grpcListen: address(
      "grpc.listen",
      "Where gRPC clients and the instances connect. --grpc-port 0 takes a free port.",
      { default: "127.0.0.1:3001", alias: "grpc-port" },
    ),
    consul: boolean(
      "consul",
      "Register everything in Consul: in the agent at CONSUL_HTTP_ADDR or 127.0.0.1:8500, or else in one that is started in dev mode.",
      { default: false },
    ),
    verbose: boolean("verbose", "Show all that the processes log, not only warnings and errors.", { default: false }),
    engines: section("Engines that are started", {
      flags: list(
        "engine.flag",
        "A word for the command line of every engine that is started, passed on as it is: --engine.flag=--sim.decode_ms_per_token=20. With prefill: or decode: before it, for engines of that role alone: decode:--fault=stall. Repeatable; all words after -- are meant so too.",
      ),
      connector: choice(
        "connector",
        "How KV moves between engines. Left out: p2p-zmq with the sim and the embedded engine, nixl with vLLM.",
        CONNECTOR_NAMES,
        { optional: true },
      ),
      servedName: text(
        "served_name",
        "Name under which vLLM or the embedded engine serves its model. Left out: its id, or what its file says.",
        { optional: true },
      ),
      vllmCommand: text(
        "vllm.command",
        "The vLLM to start, where it is not the one of the active virtual environment or the PATH.",
        { optional: true },
      ),
      gpus: text(
        "gpus",
        "GPUs for vLLM, one entry an instance, prefill first: 0,1,2. An instance with several has them joined by +: 0+1,2+3. Left out: GPU 0 for the first, 1 for the second and so on, where CUDA_VISIBLE_DEVICES doesn't say which.",
        { optional: true },
      ),
      hfToken: secret("hf_token", "Hugging Face token, passed on to vLLM.", { env: ["HF_TOKEN"] }),
      prefillKvPort: integer(
        "prefill.kv_port",
        "First of the ports on which prefill engines hand over KV; a taken one is passed over.",
        { default: 20_001, min: 1, max: 65_000, env: ["PREFILL_KV_PORT"] },
      ),
      decodeKvPort: integer(
        "decode.kv_port",
        "First of the ports on which decode engines receive KV; a taken one is passed over.",
        { default: 21_001, min: 1, max: 65_000, env: ["DECODE_KV_PORT"] },
      ),
    }),
    attach: section("Engines that run already", {
      prefill: list(
        "attach.prefill",
        "URL of a running vLLM server to wrap as a prefill instance. Repeatable; their number replaces --prefill.",
      ),
      decode: list(
        "attach.decode",
        "URL of a running vLLM server to wrap as a decode instance. Repeatable; their number replaces --decode.",
      ),
      discover: address(
        "discover",
        "Starts no engines: adopts vLLM engines with P2P NCCL that ping this address, 127.0.0.1:30001 in vLLM's own examples. They may come and go.",
        { optional: true },
      ),
    }),
    access: section("Secrets", {
      apiKey: secret(
        "api_key",
        "Key that clients of the OpenAI API must send. Without one, anybody on this machine may ask.",
      ),
      token: secret(
        "token",
        "Join token: who has it may join as an instance and control the run. Left out: a random one.",
      ),
    }),
    process: section("The process", {
      drainGraceMs: milliseconds("drain.grace_ms", "How long SIGTERM lets running answers finish.", {
        default: 30_000,
        min: 0,
      }),
      logsLimitMib: integer(
        "logs.limit_mib",
        "Size of all log files of this run. Each process has an equal share; its oldest lines go first.",
        { default: 256, min: 1, max: 65_536, unit: "MiB" },
      ),
      stateDir,
    }),
  },
  {
    summary:
      "Starts a router and instances on this machine, restarts what dies, and ends them all together. Further settings of " +
      "those processes are given as variables, which all of them see: TANDEM_QUEUE_LIMIT=16 tandem up.",
    usage:
      "tandem up [--prefill N] [--decode M] [--model FILE.gguf] [--engine sim] [--engine vllm --model ID] [--port 3000] [--grpc-port 3001] [-- FLAGS OF THE ENGINE]",
    rest: "engine.flag",
    removed: {
      "prefill.engine_flag": "write --engine.flag=prefill:FLAG, or prefill:FLAG after --",
      "decode.engine_flag": "write --engine.flag=decode:FLAG, or decode:FLAG after --",
    },
  },
);

export type UpConfig = Config<typeof upConfig.schema>;

/** @throws ConfigError for settings that are each fine and don't go together. */
export function checkUpConfig(config: UpConfig): void {
  if (config.attach.discover !== undefined) {
    const other = ["engine.kind", "prefill", "decode", "attach.prefill", "attach.decode", "connector"].find((key) =>
      config.settings.isGiven(key),
    );
    if (other !== undefined)
      throw new ConfigError(
        `--discover and --${other} exclude each other: engines that ping bring their role and their connector.`,
      );
    return;
  }
  const attached = config.attach.prefill.length > 0 || config.attach.decode.length > 0;
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
    if (config.engines.connector !== undefined && config.engines.connector !== "p2p-zmq") {
      throw new ConfigError(
        `--connector ${config.engines.connector} needs vLLM servers: give --attach-prefill URL and --attach-decode URL. The ${kind === "sim" ? "sim" : "embedded engine"} moves KV by p2p-zmq.`,
      );
    }
    return;
  }
  for (const role of ["prefill", "decode"] as const) {
    const urls = config.attach[role];
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
    if (config.settings.isGiven(role) && config[role] !== urls.length) {
      throw new ConfigError(
        `--${role} ${config[role]} and ${urls.length} × --attach-${role} disagree: leave --${role} out, every URL is one instance.`,
      );
    }
  }
  if (config.settings.isGiven("engine.kind") && config.engineKind !== "vllm") {
    throw new ConfigError(
      `--engine ${config.engineKind} and --attach-prefill/--attach-decode exclude each other: attached servers are engines already.`,
    );
  }
  if (config.engines.connector === "p2p-nccl") {
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
  const name = config.deploymentName ?? (restPort === 3000 ? DEFAULT_NAME : `port-${restPort}`);
  if (!NAME.test(name)) throw new ConfigError(`--name ${name}: expected 1 to 63 letters, digits and hyphens.`);
  return name;
}

export function isAttached(config: UpConfig): boolean {
  return config.attach.prefill.length > 0;
}

/** What is started where nothing is attached: as asked for, or what can be run here. */
export function engineKind(config: UpConfig): EngineKind {
  return config.engineKind ?? defaultEngineKind(config.model);
}

function checkVllm(config: UpConfig): void {
  if (config.model === undefined) {
    throw new ConfigError(
      "--engine vllm needs a model: --model ID of Hugging Face, such as meta-llama/Llama-3.1-8B-Instruct, or the path of a folder.",
    );
  }
  if (config.engines.connector === "p2p-zmq") {
    throw new ConfigError(
      "--connector p2p-zmq is for the sim. vLLM moves KV by nixl (from 0.24 on) or p2p-nccl (up to 0.23).",
    );
  }
  const instances = config.prefill + config.decode;
  const given = gpusOf(config);
  if (given !== undefined && given.length !== instances) {
    throw new ConfigError(
      `--gpus ${config.engines.gpus}: that is ${given.length} of ${instances} instances. Give one entry each, prefill first; GPUs of one instance are joined by +. Several may share one: 0,0.`,
    );
  }
}

/** The CUDA_VISIBLE_DEVICES of each instance, prefill first; undefined where they are not given. */
export function gpusOf(config: UpConfig): readonly string[] | undefined {
  return config.engines.gpus?.split(",").map((entry) => entry.trim().replaceAll("+", ","));
}
