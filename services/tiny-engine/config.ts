// The settings of `tandem engine`.
import { address, boolean, choice, ConfigError, defineConfig, integer, list, number, text, type Config } from "../common/config.ts";
import { FAULT_KINDS, parseFault } from "./faults.ts";
import { CONNECTORS, ROLES } from "./serve-engine.ts";
import type { SimEngineOptions } from "./server.ts";
import { MIN_ROW_BYTES } from "./sim/kv-rows.ts";

export const engineConfig = defineConfig("engine", {
  sim: boolean({ default: true, doc: "Simulate: the arithmetic is replaced by a clock, everything else is real." }),
  listen: address({ default: "127.0.0.1:8000", alias: "port", doc: "Where the OpenAI API is served. Port 0: any free one. With several instances the ports follow each other." }),
  expose: boolean({ default: false, doc: "Allow addresses that other machines reach. An engine has no access control, and its request ids say where it connects to." }),
  instances: integer({ default: 1, min: 1, max: 4_096, unit: "engines", doc: "Engines in this one process." }),
  "model.name": text({ default: "tandem-sim", alias: "model", doc: "Name under which the model is served." }),
  "model.max_len": integer({ default: 8_192, min: 16, max: 10_000_000, unit: "tokens", doc: "Prompt and answer together." }),
  "model.hash_salt": text({ default: "", doc: "Other weights: another salt gives other texts, and its KV fits no other engine." }),
  role: choice(ROLES, { default: "none", doc: "Which leg of a request this engine computes. none: both, an aggregated engine." }),
  connector: choice(CONNECTORS, { default: "none", doc: "How KV moves between engines: pushed under the request's id, or offered and read as with NIXL." }),
  "kv.listen": address({ default: "127.0.0.1:0", doc: "Where other engines reach this one's KV. With several instances the ports follow each other." }),
  "kv.slots": integer({ default: 64, min: 1, max: 65_536, unit: "sequences", doc: "Sequences that run or hold KV at one time. More wait; more KV that is pushed here is refused." }),
  "kv.block_size": integer({ default: 16, min: 1, max: 1_024, unit: "tokens", doc: "Tokens in one block of KV." }),
  "kv.lease_ms": integer({ default: 30_000, min: 1, unit: "ms", doc: "KV that nobody claims is freed after this." }),
  "kv.push_timeout_ms": integer({ default: 5_000, min: 1, unit: "ms", doc: "How long pushing a prompt's KV may take before its request fails." }),
  "kv.bytes_per_token": integer({ default: 256, min: MIN_ROW_BYTES, max: 1_048_576, unit: "bytes", doc: "Size of one token's KV, a multiple of 4. They are really made, sent and checked." }),
  "kv.token_limit": integer({ optional: true, min: 16, unit: "tokens", doc: "KV of all sequences together. Left out: enough for the longest sequence in every slot." }),
  "sim.prefill_ms_per_token": number({ default: 0.05, min: 0, max: 10_000, unit: "ms", doc: "Time for one prompt token." }),
  "sim.decode_ms_per_token": number({ default: 8, min: 0, max: 60_000, unit: "ms", doc: "Time for one token of every answer that is running." }),
  "sim.request_ms": number({ default: 0, min: 0, max: 60_000, unit: "ms", doc: "Added once for each request." }),
  "sim.step_tokens": integer({ default: 2_048, min: 1, unit: "tokens", doc: "Prompt tokens that one step computes at most; longer prompts take several." }),
  fault: list({ doc: `Something to do wrong, as KIND:FIELD=VALUE. May be given several times. Kinds: ${FAULT_KINDS.join(", ")}.` }),
}, { summary: "Runs an engine alone: vLLM's HTTP API with a clock in place of the model." });

export type EngineConfig = Config<typeof engineConfig.schema>;

/** @throws ConfigError for settings that contradict each other. */
export function simOptions(config: EngineConfig): SimEngineOptions {
  const [host, port] = splitAddress(config.listen);
  for (const [key, at] of [["listen", host], ["kv.listen", splitAddress(config["kv.listen"])[0]]] as const) {
    if (!config.expose && !isLoopback(at)) {
      throw new ConfigError(`${key} ${at} can be reached from other machines, and an engine has no access control. Use 127.0.0.1, or say --expose.`);
    }
  }
  if (config["kv.bytes_per_token"] % 4 !== 0) throw new ConfigError(`kv.bytes_per_token must be a multiple of 4, got ${config["kv.bytes_per_token"]}`);
  if (config.connector !== "none" && config.role === "none") throw new ConfigError(`--connector ${config.connector} needs --role prefill or --role decode`);
  if (config.role !== "none" && config.connector === "none") throw new ConfigError(`--role ${config.role} needs --connector p2p-zmq or --connector nixl`);
  return {
    host, port, modelName: config["model.name"], maxLength: config["model.max_len"], hashSalt: config["model.hash_salt"],
    role: config.role, connector: config.connector, kvListen: config["kv.listen"], kvSlots: config["kv.slots"],
    kvBlockSize: config["kv.block_size"], kvLeaseMs: config["kv.lease_ms"], kvPushTimeoutMs: config["kv.push_timeout_ms"],
    kvBytesPerToken: config["kv.bytes_per_token"],
    ...(config["kv.token_limit"] === undefined ? {} : { kvTokenLimit: config["kv.token_limit"] }),
    prefillMsPerToken: config["sim.prefill_ms_per_token"], decodeMsPerToken: config["sim.decode_ms_per_token"],
    requestMs: config["sim.request_ms"], stepTokenLimit: config["sim.step_tokens"], faults: readFaults(config.fault),
  };
}

function readFaults(texts: readonly string[]): ReturnType<typeof parseFault>[] {
  try {
    return texts.map(parseFault);
  } catch (error) {
    throw new ConfigError(`--fault: ${(error as Error).message}`);
  }
}

function splitAddress(written: string): [string, number] {
  const colon = written.lastIndexOf(":");
  return [written.slice(0, colon).replace(/^\[|\]$/g, ""), Number(written.slice(colon + 1))];
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);
}
