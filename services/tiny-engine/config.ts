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
  milliseconds,
  number,
  section,
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
    sim: boolean(
      "sim",
      "Simulate: the arithmetic is replaced by a clock, everything else is real. --no-sim: run the model that ships. Left out: simulate, unless a model is given.",
      { optional: true },
    ),
    listen: address(
      "listen",
      "Where the OpenAI API is served. Port 0: any free one. With several engines the ports follow each other.",
      { default: "127.0.0.1:8000", alias: "port" },
    ),
    expose: boolean(
      "expose",
      "Allow addresses that other machines reach. An engine has no access control, and its request ids say where it connects to.",
      { default: false },
    ),
    engines: integer("engines", "Engines in this one process.", { default: 1, min: 1, max: 4_096, unit: "engines" }),
    role: choice("role", "Which leg of a request this engine computes. none: both, an aggregated engine.", ROLES, {
      default: "none",
    }),
    connector: choice(
      "connector",
      "How KV moves between engines: pushed under the request's id, or offered and read as with NIXL.",
      CONNECTORS,
      { default: "none" },
    ),
    fault: list(
      "fault",
      `Something to do wrong, as KIND:FIELD=VALUE. May be given several times. Kinds: ${FAULT_KINDS.join(", ")}.`,
    ),
    model: section("Model", {
      file: text("model.file", "A GGUF file to run: Llama architecture; F32, F16 or Q8_0.", {
        optional: true,
        alias: "model",
      }),
      name: text("model.name", "Name under which the model is served. Left out: what its file says, or tandem-sim.", {
        optional: true,
      }),
      maxLen: integer(
        "model.max_len",
        "Prompt and answer together. Left out: the model's context, or 8,192 with the sim.",
        { optional: true, min: 16, max: 10_000_000, unit: "tokens" },
      ),
      claimHash: text(
        "model.claim_hash",
        "Lie to other engines about which model this is. For tests: it shows what KV of other weights does.",
        { optional: true },
      ),
      hashSalt: text(
        "model.hash_salt",
        "Other weights: another salt gives other texts, and its KV fits no other engine.",
        { default: "" },
      ),
    }),
    kv: section("KV cache and its transfer", {
      listen: address(
        "kv.listen",
        "Where other engines reach this one's KV. With several engines the ports follow each other.",
        { default: "127.0.0.1:0" },
      ),
      slots: integer(
        "kv.slots",
        "Sequences that run or hold KV at one time. More wait; more KV that is pushed here is refused.",
        { default: 64, min: 1, max: 65_536, unit: "sequences" },
      ),
      blockSize: integer("kv.block_size", "Tokens in one block of KV.", {
        default: 16,
        min: 1,
        max: 1_024,
        unit: "tokens",
      }),
      leaseMs: milliseconds("kv.lease_ms", "KV that nobody claims is freed after this.", { default: 30_000 }),
      pushTimeoutMs: milliseconds(
        "kv.push_timeout_ms",
        "How long pushing a prompt's KV may take before its request fails.",
        { default: 5_000 },
      ),
      bytesPerToken: integer(
        "kv.bytes_per_token",
        "Size of one token's KV, a multiple of 4. They are really made, sent and checked.",
        { default: 256, min: MIN_ROW_BYTES, max: 1_048_576, unit: "bytes" },
      ),
      tokenLimit: integer(
        "kv.token_limit",
        "KV of all sequences together. Left out: enough for the longest sequence in every slot.",
        { optional: true, min: 16, unit: "tokens" },
      ),
    }),
    pace: section("Pace of the sim", {
      prefillMsPerToken: number("sim.prefill_ms_per_token", "Time for one prompt token.", {
        default: 0.05,
        min: 0,
        max: 10_000,
        unit: "ms",
      }),
      decodeMsPerToken: number("sim.decode_ms_per_token", "Time for one token of every answer that is running.", {
        default: 8,
        min: 0,
        max: 60_000,
        unit: "ms",
      }),
      requestMs: number("sim.request_ms", "Added once for each request.", {
        default: 0,
        min: 0,
        max: 60_000,
        unit: "ms",
      }),
      stepTokens: integer(
        "sim.step_tokens",
        "Prompt tokens that one step computes at most; longer prompts take several.",
        { default: 2_048, min: 1, unit: "tokens" },
      ),
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
  if (config.sim === true && config.model.file !== undefined) {
    throw new ConfigError(
      "--sim and --model exclude each other: the sim runs no model. Its name is set by --model.name.",
    );
  }
  return config.sim === false || config.model.file !== undefined;
}

/** @param model The file. @throws ConfigError for settings that contradict each other. */
export function embeddedOptions(config: EngineConfig, model: string): LlamaEngineStart {
  const idle = config.settings.all.find(({ key, origin }) => SIM_ONLY.includes(key) && origin !== "default");
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
    kvListen: config.kv.listen,
    kvSlots: config.kv.slots,
    kvLeaseMs: config.kv.leaseMs,
    kvPushTimeoutMs: config.kv.pushTimeoutMs,
    faults: readFaults(config.fault),
    ...(config.model.name === undefined ? {} : { modelName: config.model.name }),
    ...(config.model.maxLen === undefined ? {} : { maxLength: config.model.maxLen }),
    ...(config.model.claimHash === undefined ? {} : { claimedHash: config.model.claimHash }),
    ...(config.kv.tokenLimit === undefined ? {} : { kvTokenLimit: config.kv.tokenLimit }),
  };
}

/** @throws ConfigError for settings that contradict each other. */
export function simOptions(config: EngineConfig): SimEngineOptions {
  const { host, port, role, connector } = commonOptions(config);
  if (config.kv.bytesPerToken % 4 !== 0)
    throw new ConfigError(`kv.bytes_per_token must be a multiple of 4, got ${config.kv.bytesPerToken}`);
  return {
    host,
    port,
    role,
    connector,
    modelName: config.model.name ?? "tandem-sim",
    maxLength: config.model.maxLen ?? 8_192,
    hashSalt: config.model.hashSalt,
    kvListen: config.kv.listen,
    kvSlots: config.kv.slots,
    kvBlockSize: config.kv.blockSize,
    kvLeaseMs: config.kv.leaseMs,
    kvPushTimeoutMs: config.kv.pushTimeoutMs,
    kvBytesPerToken: config.kv.bytesPerToken,
    ...(config.kv.tokenLimit === undefined ? {} : { kvTokenLimit: config.kv.tokenLimit }),
    prefillMsPerToken: config.pace.prefillMsPerToken,
    decodeMsPerToken: config.pace.decodeMsPerToken,
    requestMs: config.pace.requestMs,
    stepTokenLimit: config.pace.stepTokens,
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
    ["kv.listen", splitAddress(config.kv.listen).host],
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
