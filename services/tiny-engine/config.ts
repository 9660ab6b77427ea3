// The settings of `tandem engine`.
import { splitAddress } from "../common/address.ts";
import { isLoopbackHost } from "../common/loopback.ts";
import {
  address,
  boolean,
  choice,
  ConfigError,
  defineConfig,
  integer,
  list,
  number,
  settingsOf,
  text,
  type Config,
} from "../common/config.ts";
import { FAULT_KINDS, parseFault } from "./faults.ts";
import type { LlamaEngineStart } from "./llama/start-llama-engine.ts";
import { CONNECTORS, ROLES } from "./roles.ts";
import type { SimEngineOptions } from "./server.ts";
import { MIN_ROW_BYTES } from "./sim/kv-rows.ts";

export const engineConfig = defineConfig(
  "engine",
  {
    sim: boolean({
      optional: true,
      doc: "Simulate: the arithmetic is replaced by a clock, everything else is real. --no-sim: run the model that ships. Left out: simulate, unless a model is given.",
    }),
    "model.file": text({
      optional: true,
      alias: "model",
      doc: "A GGUF file to run: Llama architecture; F32, F16 or Q8_0.",
    }),
    listen: address({
      default: "127.0.0.1:8000",
      alias: "port",
      doc: "Where the OpenAI API is served. Port 0: any free one. With several engines the ports follow each other.",
    }),
    expose: boolean({
      default: false,
      doc: "Allow addresses that other machines reach. An engine has no access control, and its request ids say where it connects to.",
    }),
    engines: integer({ default: 1, min: 1, max: 4_096, unit: "engines", doc: "Engines in this one process." }),
    "model.name": text({
      optional: true,
      doc: "Name under which the model is served. Left out: what its file says, or tandem-sim.",
    }),
    "model.max_len": integer({
      optional: true,
      min: 16,
      max: 10_000_000,
      unit: "tokens",
      doc: "Prompt and answer together. Left out: the model's context, or 8,192 with the sim.",
    }),
    "model.claim_hash": text({
      optional: true,
      doc: "Lie to other engines about which model this is. For tests: it shows what KV of other weights does.",
    }),
    "model.hash_salt": text({
      default: "",
      doc: "Other weights: another salt gives other texts, and its KV fits no other engine.",
    }),
    role: choice(ROLES, {
      default: "none",
      doc: "Which leg of a request this engine computes. none: both, an aggregated engine.",
    }),
    connector: choice(CONNECTORS, {
      default: "none",
      doc: "How KV moves between engines: pushed under the request's id, or offered and read as with NIXL.",
    }),
    "kv.listen": address({
      default: "127.0.0.1:0",
      doc: "Where other engines reach this one's KV. With several engines the ports follow each other.",
    }),
    "kv.slots": integer({
      default: 64,
      min: 1,
      max: 65_536,
      unit: "sequences",
      doc: "Sequences that run or hold KV at one time. More wait; more KV that is pushed here is refused.",
    }),
    "kv.block_size": integer({ default: 16, min: 1, max: 1_024, unit: "tokens", doc: "Tokens in one block of KV." }),
    "kv.lease_ms": integer({ default: 30_000, min: 1, unit: "ms", doc: "KV that nobody claims is freed after this." }),
    "kv.push_timeout_ms": integer({
      default: 5_000,
      min: 1,
      unit: "ms",
      doc: "How long pushing a prompt's KV may take before its request fails.",
    }),
    "kv.bytes_per_token": integer({
      default: 256,
      min: MIN_ROW_BYTES,
      max: 1_048_576,
      unit: "bytes",
      doc: "Size of one token's KV, a multiple of 4. They are really made, sent and checked.",
    }),
    "kv.token_limit": integer({
      optional: true,
      min: 16,
      unit: "tokens",
      doc: "KV of all sequences together. Left out: enough for the longest sequence in every slot.",
    }),
    "sim.prefill_ms_per_token": number({
      default: 0.05,
      min: 0,
      max: 10_000,
      unit: "ms",
      doc: "Time for one prompt token.",
    }),
    "sim.decode_ms_per_token": number({
      default: 8,
      min: 0,
      max: 60_000,
      unit: "ms",
      doc: "Time for one token of every answer that is running.",
    }),
    "sim.request_ms": number({ default: 0, min: 0, max: 60_000, unit: "ms", doc: "Added once for each request." }),
    "sim.step_tokens": integer({
      default: 2_048,
      min: 1,
      unit: "tokens",
      doc: "Prompt tokens that one step computes at most; longer prompts take several.",
    }),
    fault: list({
      doc: `Something to do wrong, as KIND:FIELD=VALUE. May be given several times. Kinds: ${FAULT_KINDS.join(", ")}.`,
    }),
  },
  {
    summary: "Runs an engine alone: vLLM's HTTP API over a small model, or over a clock in its place.",
    usage: "tandem engine [--sim | --no-sim | --model FILE.gguf] [--listen 127.0.0.1:8000]",
  },
);

export type EngineConfig = Config<typeof engineConfig.schema>;

/** Settings that mean something to the sim alone. */
const SIM_ONLY = [
  "engines",
  "model.hash_salt",
  "kv.block_size",
  "kv.bytes_per_token",
  "sim.prefill_ms_per_token",
  "sim.decode_ms_per_token",
  "sim.request_ms",
  "sim.step_tokens",
];

/** Whether a model is to be run rather than simulated. @throws ConfigError where both are asked for. */
export function isEmbedded(config: EngineConfig): boolean {
  if (config.sim === true && config["model.file"] !== undefined) {
    throw new ConfigError(
      "--sim and --model exclude each other: the sim runs no model. Its name is set by --model.name.",
    );
  }
  return config.sim === false || config["model.file"] !== undefined;
}

/** @param model The file. @throws ConfigError for settings that contradict each other. */
export function embeddedOptions(config: EngineConfig, model: string): LlamaEngineStart {
  const idle = settingsOf(config).find(({ key, origin }) => SIM_ONLY.includes(key) && origin !== "default");
  if (idle !== undefined)
    throw new ConfigError(`${idle.key} is for the sim; a model has its own. Leave it out, or say --sim.`);
  if (config.connector === "nixl")
    throw new ConfigError("--connector nixl: the embedded engine moves KV by p2p-zmq. nixl is for vLLM and the sim.");
  const { host, port, role, connector } = commonOptions(config);
  return {
    model,
    host,
    port,
    role,
    connector,
    kvListen: config["kv.listen"],
    kvSlots: config["kv.slots"],
    kvLeaseMs: config["kv.lease_ms"],
    kvPushTimeoutMs: config["kv.push_timeout_ms"],
    faults: readFaults(config.fault),
    ...(config["model.name"] === undefined ? {} : { modelName: config["model.name"] }),
    ...(config["model.max_len"] === undefined ? {} : { maxLength: config["model.max_len"] }),
    ...(config["model.claim_hash"] === undefined ? {} : { claimedHash: config["model.claim_hash"] }),
    ...(config["kv.token_limit"] === undefined ? {} : { kvTokenLimit: config["kv.token_limit"] }),
  };
}

/** @throws ConfigError for settings that contradict each other. */
export function simOptions(config: EngineConfig): SimEngineOptions {
  const { host, port, role, connector } = commonOptions(config);
  if (config["kv.bytes_per_token"] % 4 !== 0)
    throw new ConfigError(`kv.bytes_per_token must be a multiple of 4, got ${config["kv.bytes_per_token"]}`);
  return {
    host,
    port,
    role,
    connector,
    modelName: config["model.name"] ?? "tandem-sim",
    maxLength: config["model.max_len"] ?? 8_192,
    hashSalt: config["model.hash_salt"],
    kvListen: config["kv.listen"],
    kvSlots: config["kv.slots"],
    kvBlockSize: config["kv.block_size"],
    kvLeaseMs: config["kv.lease_ms"],
    kvPushTimeoutMs: config["kv.push_timeout_ms"],
    kvBytesPerToken: config["kv.bytes_per_token"],
    ...(config["kv.token_limit"] === undefined ? {} : { kvTokenLimit: config["kv.token_limit"] }),
    prefillMsPerToken: config["sim.prefill_ms_per_token"],
    decodeMsPerToken: config["sim.decode_ms_per_token"],
    requestMs: config["sim.request_ms"],
    stepTokenLimit: config["sim.step_tokens"],
    faults: readFaults(config.fault),
  };
}

interface CommonOptions {
  readonly host: string;
  readonly port: number;
  readonly role: EngineConfig["role"];
  readonly connector: EngineConfig["connector"];
}

function commonOptions(config: EngineConfig): CommonOptions {
  const { host, port } = splitAddress(config.listen);
  for (const [key, at] of [
    ["listen", host],
    ["kv.listen", splitAddress(config["kv.listen"]).host],
  ] as const) {
    if (!config.expose && !isLoopbackHost(at)) {
      throw new ConfigError(
        `${key} ${at} can be reached from other machines, and an engine has no access control. Use 127.0.0.1, or say --expose.`,
      );
    }
  }
  if (config.connector !== "none" && config.role === "none")
    throw new ConfigError(`--connector ${config.connector} needs --role prefill or --role decode`);
  if (config.role !== "none" && config.connector === "none")
    throw new ConfigError(`--role ${config.role} needs --connector p2p-zmq or --connector nixl`);
  return { host, port, role: config.role, connector: config.connector };
}

function readFaults(texts: readonly string[]): ReturnType<typeof parseFault>[] {
  try {
    return texts.map(parseFault);
  } catch (error) {
    throw new ConfigError(`--fault: ${(error as Error).message}`);
  }
}
