// The settings of `tandem engine`.
import { isLoopbackHost, splitAddress } from "../common/address.ts";
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
  secret,
  section,
  text,
  type Config,
} from "../common/config.ts";
import { CONNECTORS, ROLES } from "./engine.ts";
import { FAULT_KINDS, parseFault, type Fault } from "./faults.ts";
import type { LlamaEngineStart } from "./llama/start-llama-engine.ts";
import type { SimEngineOptions } from "./server.ts";
import { MIN_ROW_BYTES } from "./sim/kv-rows.ts";

/** Its properties are named as the options of the engines. */
export const engineConfig = defineConfig(
  "engine",
  {
    sim: boolean(
      "sim",
      "Simulate: a clock replaces the arithmetic, everything else is real. --no-sim: run the shipped model. Left out: simulate, unless a model is given.",
      { optional: true },
    ),
    listen: address(
      "listen",
      "Where the OpenAI API is served. Port 0: any free port. Several engines take consecutive ports.",
      { default: "127.0.0.1:8000", alias: "port" },
    ),
    socketPath: text(
      "uds",
      "Unix socket where the OpenAI API is served, instead of listen. Only users who may enter its folder reach it.",
      { optional: true },
    ),
    expose: boolean(
      "expose",
      "Allow addresses that other machines can reach. An engine has no access control, and request ids decide where it connects to.",
      { default: false },
    ),
    engines: integer("engines", "Number of engines in this process.", {
      default: 1,
      min: 1,
      max: 4_096,
      unit: "engines",
    }),
    role: choice("role", "Which leg of a request this engine computes. none: both legs.", ROLES, {
      default: "none",
    }),
    connector: choice(
      "connector",
      "How KV moves between engines. p2p-zmq: pushed under the request's id. nixl: offered, and read by the decode engine.",
      CONNECTORS,
      { default: "none" },
    ),
    fault: list("fault", `A fault to inject, as KIND:FIELD=VALUE. May be repeated. Kinds: ${FAULT_KINDS.join(", ")}.`),
    inject: boolean(
      "inject",
      "Serve /sim/state, which shows the engine and the KV that it holds, and /sim/fault, which injects faults. For tests.",
      { default: false },
    ),
    model: section("Model", {
      file: text("model.file", "A GGUF file to run: Llama architecture; F32, F16 or Q8_0.", {
        optional: true,
        alias: "model",
      }),
      modelName: text(
        "model.name",
        "Name under which the model is served. Left out: the name in its file, or tandem-sim.",
        {
          optional: true,
        },
      ),
      maxLength: integer(
        "model.max_len",
        "Limit on prompt and answer together. Left out: the model's context, or 8,192 with the sim.",
        { optional: true, min: 16, max: 10_000_000, unit: "tokens" },
      ),
      claimedHash: text(
        "model.claim_hash",
        "Model hash to claim falsely to other engines. For tests of KV that was made by other weights.",
        { optional: true },
      ),
      hashSalt: text(
        "model.hash_salt",
        "Simulates other weights: another salt gives other texts, and KV that engines with a different salt refuse.",
        { default: "" },
      ),
    }),
    kv: section("KV cache and its transfer", {
      kvListen: address(
        "kv.listen",
        "Where other engines reach this engine's KV. Several engines take consecutive ports.",
        { default: "127.0.0.1:0" },
      ),
      kvKey: secret(
        "kv.key",
        "Key that all engines share which exchange KV with this one. They prove it to each other, and their KV is encrypted. Empty: every program that reaches kv.listen can send and read KV.",
      ),
      kvSlots: integer(
        "kv.slots",
        "Limit on sequences that run or hold KV at one time. Further sequences wait; further pushed KV is refused.",
        { default: 64, min: 1, max: 65_536, unit: "sequences" },
      ),
      kvBlockSize: integer("kv.block_size", "Tokens in one block of KV.", {
        default: 16,
        min: 1,
        max: 1_024,
        unit: "tokens",
      }),
      kvLeaseMs: milliseconds("kv.lease_ms", "How long unclaimed KV is kept before it is freed.", { default: 30_000 }),
      kvPushTimeoutMs: milliseconds(
        "kv.push_timeout_ms",
        "How long pushing a prompt's KV may take before its request fails.",
        { default: 5_000 },
      ),
      kvBytesPerToken: integer(
        "kv.bytes_per_token",
        "Size of one token's KV, a multiple of 4. The bytes are really made, sent and checked.",
        { default: 256, min: MIN_ROW_BYTES, max: 1_048_576, unit: "bytes" },
      ),
      kvTokenLimit: integer(
        "kv.token_limit",
        "Limit on the KV of all sequences together. Left out: enough for the longest sequence in every slot.",
        { optional: true, min: 16, unit: "tokens" },
      ),
    }),
    pace: section("Pace of the sim", {
      prefillMsPerToken: number("sim.prefill_ms_per_token", "Time to compute one prompt token.", {
        default: 0.05,
        min: 0,
        max: 10_000,
        unit: "ms",
      }),
      decodeMsPerToken: number("sim.decode_ms_per_token", "Time to compute one token of every running answer.", {
        default: 8,
        min: 0,
        max: 60_000,
        unit: "ms",
      }),
      requestMs: number("sim.request_ms", "Time added once for each request.", {
        default: 0,
        min: 0,
        max: 60_000,
        unit: "ms",
      }),
      stepTokenLimit: integer(
        "sim.step_tokens",
        "Limit on the prompt tokens that one step computes. Longer prompts take several steps.",
        { default: 2_048, min: 1, unit: "tokens" },
      ),
    }),
  },
  {
    summary: "Runs an engine alone: vLLM's HTTP API over a small model or a simulation.",
    usage: "tandem engine [--sim | --no-sim | --model FILE.gguf] [--listen 127.0.0.1:8000]",
  },
);

export type EngineConfig = Config<typeof engineConfig.schema>;

/** Settings that only the sim uses. */
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

/** Whether to run a model rather than simulate one. @throws ConfigError if both are asked for. */
export function isEmbedded(config: EngineConfig): boolean {
  if (config.sim === true && config.model.file !== undefined) {
    throw new ConfigError("--sim and --model exclude each other: the sim runs no model. --model.name sets its name.");
  }
  return config.sim === false || config.model.file !== undefined;
}

/** @param model The file. @throws ConfigError for settings that contradict each other. */
export function embeddedOptions(config: EngineConfig, model: string): LlamaEngineStart {
  const idle = config.settings.all.find(({ key, origin }) => SIM_ONLY.includes(key) && origin !== "default");
  if (idle !== undefined) throw new ConfigError(`${idle.key} applies to the sim only. Leave it out, or add --sim.`);
  if (config.connector === "nixl")
    throw new ConfigError("--connector nixl: the embedded engine moves KV by p2p-zmq. nixl is for vLLM and the sim.");
  return { ...config.model, ...config.kv, ...commonOptions(config), model };
}

/** @throws ConfigError for settings that contradict each other. */
export function simOptions(config: EngineConfig): SimEngineOptions {
  const common = commonOptions(config);
  if (config.kv.kvBytesPerToken % 4 !== 0)
    throw new ConfigError(`kv.bytes_per_token must be a multiple of 4, got ${config.kv.kvBytesPerToken}`);
  return { ...config.model, ...config.kv, ...config.pace, ...common };
}

function commonOptions(config: EngineConfig) {
  const { listen, socketPath, engines, kv, expose, role, connector, fault, inject } = config;
  const { host, port } = splitAddress(listen);
  if (socketPath !== undefined && engines > 1)
    throw new ConfigError("--uds names one socket, and several engines need one each. Give them --listen.");
  for (const [key, at] of [
    ["listen", host],
    ["kv.listen", splitAddress(kv.kvListen).host],
  ] as const) {
    if (!expose && !isLoopbackHost(at)) {
      throw new ConfigError(
        `${key} ${at} can be reached from other machines, and an engine has no access control. Use 127.0.0.1, or add --expose.`,
      );
    }
  }
  if (connector !== "none" && role === "none")
    throw new ConfigError(`--connector ${connector} needs --role prefill or --role decode`);
  if (role !== "none" && connector === "none")
    throw new ConfigError(`--role ${role} needs --connector p2p-zmq or --connector nixl`);
  return { host, port, socketPath, role, connector, inject, faults: readFaults(fault) };
}

function readFaults(texts: readonly string[]): Fault[] {
  try {
    return texts.map(parseFault);
  } catch (error) {
    throw new ConfigError(`--fault: ${(error as Error).message}`);
  }
}
