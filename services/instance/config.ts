// The settings that prefill and decode instances have in common.
import {
  address,
  addresses,
  choice,
  integer,
  list,
  milliseconds,
  number,
  secret,
  section,
  text,
  type Config,
} from "../common/config.ts";
import { deploymentName } from "../common/deployment.ts";
import { LOG_LEVELS } from "../common/log.ts";
import { stateDir } from "../common/state-dir.ts";
import { consulCheckSettings, consulSettings, REMOVED_CONSUL_KEYS } from "../discovery/consul-settings.ts";
import { ENGINE_KINDS } from "../engine/engine.ts";
import { CONNECTOR_NAMES } from "../kv/index.ts";

export type InstanceRole = "prefill" | "decode";

const DEFAULTS = {
  prefill: { grpc: "127.0.0.1:3101", kv: "127.0.0.1:20001", kvEnv: "PREFILL_KV_PORT", slots: 64 },
  decode: { grpc: "127.0.0.1:3201", kv: "127.0.0.1:21001", kvEnv: "DECODE_KV_PORT", slots: 256 },
} as const;

/** The result's type is written out by inference: `defineConfig` needs each setting's own. */
// oxlint-disable-next-line explicit-function-return-type
export function instanceSections(role: InstanceRole) {
  const preset = DEFAULTS[role];
  return {
    deployment: section("Deployment", { name: deploymentName }),
    grpc: section("gRPC", {
      listen: address("grpc.listen", "Where the router connects.", { default: preset.grpc, alias: "listen" }),
      advertise: address(
        "grpc.advertise",
        "host:port under which others dial this instance, if different from grpc.listen.",
        { optional: true },
      ),
      token: secret("token", "Join token that instances, routers and the registry share."),
    }),
    registry: section("Registration", {
      kind: choice(
        "registry.kind",
        "Where this instance registers. embedded: with a router, at registry.address. consul: in Consul. static: nowhere, and the router must list it.",
        ["embedded", "consul", "static"],
        { default: "embedded" },
      ),
      addresses: addresses(
        "registry.address",
        "The router's gRPC address, where this instance registers; of several routers each one's, with commas between. " +
          "Empty: it doesn't register, and the router must list it.",
        { default: ["127.0.0.1:3001"], alias: "router" },
      ),
    }),
    engine: section("Engine", {
      kind: choice(
        "engine.kind",
        "Engine to start: embedded, a small model on the CPU; vllm, which needs a model; sim, a simulation. Left out together with engine.attach: embedded, with the model that ships or the GGUF file of `model`.",
        ENGINE_KINDS,
        { optional: true, alias: "engine" },
      ),
      model: text(
        "model",
        "Name under which the engine serves the model. Empty: the engine's own. With --engine vllm: the model itself, an id of Hugging Face or a folder. With --engine embedded: a GGUF file; empty: the model that ships.",
        { default: "", env: ["MODEL_ID"] },
      ),
      servedName: text(
        "served_name",
        "Name under which a started vLLM or embedded engine serves its model. Empty: its id, or what the file says, or the last part of its path.",
        { default: "" },
      ),
      flags: list(
        "engine.flag",
        "A word for the engine's command line, passed on as it is. May be given several times; all words after -- are meant so too.",
      ),
      startTimeoutMs: milliseconds(
        "engine.start_timeout_ms",
        "How long the engine may take to load before the start fails.",
        { default: 900_000, min: 1_000, max: 86_400_000 },
      ),
      attach: text("engine.attach", "URL of a running engine to use instead of starting one: http://127.0.0.1:8000.", {
        default: "",
        alias: "attach",
      }),
      apiKey: secret("engine.api_key", "Key that the attached engine wants."),
      kvAddress: address(
        "engine.kv_address",
        "host:port of the attached engine's KV side channel. Needed with p2p-nccl and p2p-zmq.",
        { optional: true },
      ),
    }),
    vllm: section("vLLM", {
      command: text(
        "vllm.command",
        "The vLLM to start: a program, or words such as python3 -m vllm.entrypoints.cli.main. Empty: `vllm` of the active virtual environment, then of the PATH.",
        { default: "" },
      ),
      gpus: text(
        "gpus",
        "GPUs of the vLLM that is started, as CUDA_VISIBLE_DEVICES names them: 0 or 2,3. Empty: as inherited.",
        { default: "" },
      ),
      hfToken: secret("hf_token", "Hugging Face token for vLLM.", { env: ["HF_TOKEN"] }),
      poolGib: number(
        "vllm.pool_gib",
        "Pinned host memory that every rank of a vLLM with p2p-nccl takes at its start, for KV that its GPU has no room for.",
        { default: 4, min: 0.25, max: 1_024, unit: "GiB" },
      ),
    }),
    kv: section("KV transfer", {
      connector: choice(
        "connector",
        "How the KV cache moves between engines. Left out: p2p-zmq with the sim and the embedded engine, nixl with vLLM and with an attached engine.",
        CONNECTOR_NAMES,
        { optional: true },
      ),
      listen: address(
        "kv.listen",
        "Host of the engine's KV side channel, as its partners dial it, and the first port to try. The first free one is taken, and a higher one after every restart of the engine. A bare port keeps the host.",
        { default: preset.kv, env: [preset.kvEnv] },
      ),
      advertise: text(
        "kv.advertise",
        "Host under which partners dial the KV side channel, if different from that of kv.listen. The port is the one taken.",
        { optional: true },
      ),
    }),
    legs: section("Legs", {
      slots: integer(
        "slots",
        role === "decode"
          ? "KV slots: reservations and answers at once. One more is refused."
          : "Prompts at once. One more is refused.",
        { default: preset.slots, min: 1, max: 65_536, unit: "legs" },
      ),
      stallMs: milliseconds(
        "stall_ms",
        "An engine that has work and counts no token for this long is wedged and is started again. Prompts get more: by " +
          "their length and the rate seen so far. An answer that a slow client holds back doesn't count.",
        { default: 15_000, min: 100 },
      ),
    }),
    consul: section("Consul", { ...consulSettings, ...consulCheckSettings }),
    process: section("The process", {
      drainGraceMs: milliseconds("drain.grace_ms", "How long running legs may take to end after SIGTERM.", {
        default: 30_000,
        min: 0,
      }),
      stateDir,
      logLevel: choice("log.level", "Lowest level that is logged. Left out: TANDEM_LOG_LEVEL, else info.", LOG_LEVELS, {
        optional: true,
      }),
    }),
  };
}

export type InstanceConfig = Config<ReturnType<typeof instanceSections>>;

/** Keys that instances had once. */
export const REMOVED_INSTANCE_KEYS = {
  "kv.host": "kv.listen is the host and the first port, as HOST:PORT",
  "kv.port": "kv.listen is the host and the first port, and --kv.listen=PORT keeps the host",
  "kv.advertise_host": "it is called kv.advertise",
  "watch.limit": "64 routers may watch an instance, and no setup needs another number",
  ...REMOVED_CONSUL_KEYS,
} as const;
