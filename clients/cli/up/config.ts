// Settings of `tandem up`. The names of the BentoML example that Tandem grew from still work as variables.
import { ADDRESS } from "../../../services/common/address.ts";
import { DEPLOYMENT_NAME } from "../../../services/common/deployment.ts";
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
  type Config,
} from "../../../services/common/config.ts";
import { ENGINE_KINDS, type EngineKind } from "../../../services/engine/engine.ts";
import { restTls, tlsSettings } from "../../../services/rpc/tls-settings.ts";
import { CONNECTOR_NAMES } from "../../../services/kv/index.ts";
import { stateDir } from "../../../services/common/state-dir.ts";
import { defaultEngineKind, isGguf } from "../../../services/common/default-engine.ts";

const COUNT = { default: 1, min: 1, max: 64, unit: "instances" } as const;

export const upConfig = defineConfig(
  "up",
  {
    prefill: integer("prefill", "Prefill instances to start.", { ...COUNT, env: ["NUM_PREFILL", "num_prefill"] }),
    decode: integer("decode", "Decode instances to start.", { ...COUNT, env: ["NUM_DECODE", "num_decode"] }),
    engineKind: choice(
      "engine.kind",
      "Engine to start. embedded: a small language model on this CPU, either the shipped one or --model FILE.gguf. vllm: large models, named by --model. sim: a simulation. Left out: embedded, if its model is installed. --attach-prefill and --attach-decode wrap running vLLM servers instead.",
      ENGINE_KINDS,
      { optional: true, alias: "engine" },
    ),
    model: text(
      "model",
      "Model to serve. For the embedded engine: FILE.gguf, a small Llama. With --engine vllm: a Hugging Face id or a folder. With --engine sim: the model name that clients ask for.",
      { optional: true, env: ["MODEL_ID"] },
    ),
    deploymentName: text(
      "deployment.name",
      "Name of the deployment. `tandem status --name` and other commands find the deployment by it; deployments on one Consul differ by it. Left out: default on port 3000, port-N on port N.",
      { optional: true, alias: "name", env: ["TANDEM_NAME"] },
    ),
    restListen: address("rest.listen", "Address for OpenAI clients. --port 0 takes a free port.", {
      default: "127.0.0.1:3000",
      alias: "port",
      env: ["PROXY_PORT"],
    }),
    grpcListen: address("grpc.listen", "Address for gRPC clients and the instances. --grpc-port 0 takes a free port.", {
      default: "127.0.0.1:3001",
      alias: "grpc-port",
    }),
    consul: boolean(
      "consul",
      "Register everything in Consul: in the agent at CONSUL_HTTP_ADDR or 127.0.0.1:8500. If no agent runs there, start one in dev mode.",
      { default: false },
    ),
    verbose: boolean("verbose", "Show everything that the processes log, not only warnings and errors.", {
      default: false,
    }),
    engines: section("Engines that are started", {
      flags: list(
        "engine.flag",
        "Argument for the command line of every started engine, passed on unchanged: --engine.flag=--sim.decode_ms_per_token=20. A prefix of prefill: or decode: limits it to engines of that role: decode:--fault=stall. Repeatable; every word after -- is passed on in the same way.",
      ),
      connector: choice(
        "connector",
        "How KV moves between engines. Left out: p2p-zmq with the sim and the embedded engine, nixl with vLLM.",
        CONNECTOR_NAMES,
        { optional: true },
      ),
      servedName: text(
        "served_name",
        "Name under which vLLM or the embedded engine serves its model. Left out: the model's id, or the name in its file.",
        { optional: true },
      ),
      vllmCommand: text(
        "vllm.command",
        "vLLM command to start, if different from the one in the active virtual environment or on the PATH.",
        { optional: true },
      ),
      gpus: text(
        "gpus",
        "GPUs for vLLM, one entry per instance, prefill first: 0,1,2. Join the GPUs of one instance by +: 0+1,2+3. Left out: the GPUs in CUDA_VISIBLE_DEVICES, or else GPU 0 for the first instance, 1 for the second, and so on.",
        { optional: true },
      ),
      hfToken: secret("hf_token", "Hugging Face token, passed on to vLLM.", { env: ["HF_TOKEN"] }),
      prefillKvPort: integer(
        "prefill.kv_port",
        "First of the ports from which prefill engines send KV; ports in use are skipped.",
        { default: 20_001, min: 1, max: 65_000, env: ["PREFILL_KV_PORT"] },
      ),
      decodeKvPort: integer(
        "decode.kv_port",
        "First of the ports on which decode engines receive KV; ports in use are skipped.",
        { default: 21_001, min: 1, max: 65_000, env: ["DECODE_KV_PORT"] },
      ),
    }),
    attach: section("Engines that run already", {
      prefill: list(
        "attach.prefill",
        "URL of a running vLLM server to wrap as a prefill instance. Repeatable; the number of URLs replaces --prefill.",
      ),
      decode: list(
        "attach.decode",
        "URL of a running vLLM server to wrap as a decode instance. Repeatable; the number of URLs replaces --decode.",
      ),
      prefillKv: list(
        "attach.prefill_kv",
        "With --connector p2p-nccl: KV address (HOST:PORT) of each --attach-prefill server, in the same order.",
      ),
      decodeKv: list(
        "attach.decode_kv",
        "With --connector p2p-nccl: KV address (HOST:PORT) of each --attach-decode server, in the same order.",
      ),
      discover: address(
        "discover",
        "Start no engines. Instead, adopt vLLM engines with P2P NCCL that ping this address (127.0.0.1:30001 in vLLM's own examples). Engines may come and go.",
        { optional: true },
      ),
    }),
    access: section("Secrets", {
      apiKey: secret(
        "api_key",
        "API key that OpenAI clients must send. Without one, every user of this machine may send requests.",
      ),
      token: secret(
        "token",
        "Join token, which permits joining as an instance and controlling the run. Left out: a random token.",
      ),
    }),
    tls: section("TLS", { ...tlsSettings, rest: restTls }),
    process: section("The process", {
      drainGraceMs: milliseconds("drain.grace_ms", "How long running answers may take to finish after SIGTERM.", {
        default: 30_000,
        min: 0,
      }),
      logsLimitMib: integer(
        "logs.limit_mib",
        "Total size of this run's log files. Each process has an equal share; its oldest lines are dropped first.",
        { default: 256, min: 1, max: 65_536, unit: "MiB" },
      ),
      stateDir,
    }),
  },
  {
    summary:
      "Starts a router and instances on this machine, restarts those that die, and stops all of them together. Other " +
      "settings of these processes are set by environment variables, which all of them see: TANDEM_QUEUE_LIMIT=16 tandem up.",
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

/** @throws ConfigError for settings that are valid alone but conflict with each other. */
export function checkUpConfig(config: UpConfig): void {
  const conflict = discoverConflict(config) ?? attachConflict(config) ?? engineConflict(config);
  if (conflict !== undefined) throw new ConfigError(conflict);
}

function discoverConflict({ attach, settings }: UpConfig): string | undefined {
  const others = ["engine.kind", "prefill", "decode", "attach.prefill", "attach.decode", "connector"];
  const other = attach.discover === undefined ? undefined : others.find((key) => settings.isGiven(key));
  if (other === undefined) return undefined;
  return `--discover and --${other} exclude each other: engines that ping bring their role and their connector.`;
}

function attachConflict(config: UpConfig): string | undefined {
  if (config.attach.prefill.length + config.attach.decode.length === 0) return undefined;
  for (const role of ["prefill", "decode"] as const) {
    const urls = config.attach[role];
    if (urls.length === 0)
      return `--attach-${role} is missing: a request needs a prefill and a decode instance. Give at least one URL.`;
    const wrong = urls.find((url) => !URL.canParse(url) || !/^(https?:|unix:\/)/.test(url));
    if (wrong !== undefined)
      return `--attach-${role} ${wrong}: expected the URL of a vLLM server, such as http://127.0.0.1:8000 or unix:/PATH.`;
    if (config.settings.isGiven(role) && config[role] !== urls.length)
      return `--${role} ${config[role]} and ${urls.length} × --attach-${role} disagree: leave out --${role}, because each URL is one instance.`;
  }
  if (config.settings.isGiven("engine.kind") && config.engineKind !== "vllm")
    return `--engine ${config.engineKind} and --attach-prefill/--attach-decode exclude each other: attached servers are engines already.`;
  for (const role of ["prefill", "decode"] as const) {
    const given = config.attach[`${role}Kv`];
    if (given.length > 0 && config.engines.connector !== "p2p-nccl")
      return `--attach.${role}_kv is for --connector p2p-nccl: other connectors learn the addresses by themselves.`;
    if (config.engines.connector === "p2p-nccl" && given.length !== config.attach[role].length)
      return `--connector p2p-nccl: requests carry the KV address of each attached engine. Give --attach.${role}_kv HOST:PORT once for each --attach-${role}, in the same order: the engine's kv_ip (or its host) and kv_port.`;
    const wrong = given.find((address) => !ADDRESS.test(address));
    if (wrong !== undefined) return `--attach.${role}_kv ${wrong}: expected HOST:PORT.`;
  }
  return undefined;
}

function engineConflict(config: UpConfig): string | undefined {
  if (config.attach.discover !== undefined || isAttached(config)) return undefined;
  const kind = engineKind(config);
  const { model } = config;
  const { connector, gpus } = config.engines;
  if (kind === "vllm") {
    if (model === undefined)
      return "--engine vllm needs a model: give --model a Hugging Face id, such as meta-llama/Llama-3.1-8B-Instruct, or the path of a folder.";
    if (connector === "p2p-zmq")
      return "--connector p2p-zmq is for the sim. vLLM moves KV by nixl (from 0.24 on) or p2p-nccl (up to 0.23).";
    const instances = config.prefill + config.decode;
    const given = gpusOf(config)?.length ?? instances;
    if (given !== instances)
      return `--gpus ${gpus}: ${given} entries for ${instances} instances. Give one entry per instance, prefill first; join the GPUs of one instance by +. Instances may share a GPU: 0,0.`;
    return undefined;
  }
  if (kind === "sim" && isGguf(model))
    return `--engine sim runs no model: leave out --model ${model}, or --engine sim.`;
  if (kind === "embedded" && model !== undefined && !isGguf(model))
    return `--engine embedded runs GGUF files, but --model ${model} doesn't end in .gguf. --served_name sets the name for clients.`;
  if (connector !== undefined && connector !== "p2p-zmq")
    return `--connector ${connector} needs vLLM servers: give --attach-prefill URL and --attach-decode URL. The ${kind === "sim" ? "sim" : "embedded engine"} moves KV by p2p-zmq.`;
  return undefined;
}

/** Name of a deployment on the default port. */
export const DEFAULT_NAME = "default";

/** @throws ConfigError for a name that Consul would reject as a tag. */
export function nameOf(config: UpConfig, restPort: number): string {
  const name = config.deploymentName ?? (restPort === 3000 ? DEFAULT_NAME : `port-${restPort}`);
  if (!DEPLOYMENT_NAME.test(name))
    throw new ConfigError(`--name ${name}: expected 1 to 63 letters, digits and hyphens.`);
  return name;
}

export function isAttached(config: UpConfig): boolean {
  return config.attach.prefill.length > 0;
}

/** The engine to start if none is attached: the one asked for, or one that can run here. */
export function engineKind(config: UpConfig): EngineKind {
  return config.engineKind ?? defaultEngineKind(config.model);
}

/** The CUDA_VISIBLE_DEVICES of each instance, prefill first; undefined if not given. */
export function gpusOf(config: UpConfig): readonly string[] | undefined {
  return config.engines.gpus?.split(",").map((entry) => entry.trim().replaceAll("+", ","));
}
