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
import { memoryLimitMib } from "../common/watchdog.ts";
import { consulCheckSettings, consulSettings, REMOVED_CONSUL_KEYS } from "../discovery/consul-settings.ts";
import { ENGINE_KINDS } from "../engine/engine.ts";
import { CONNECTOR_NAMES } from "../kv/index.ts";
import { tlsSettings } from "../rpc/tls-settings.ts";

export type InstanceRole = "prefill" | "decode";

const DEFAULTS = {
  prefill: { grpc: "127.0.0.1:3101", kv: "127.0.0.1:20001", kvEnv: "PREFILL_KV_PORT", slots: 64 },
  decode: { grpc: "127.0.0.1:3201", kv: "127.0.0.1:21001", kvEnv: "DECODE_KV_PORT", slots: 256 },
} as const;

/** The return type is inferred, because `defineConfig` needs the type of each setting. */
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
    tls: section("TLS", tlsSettings),
    registry: section("Registration", {
      kind: choice(
        "registry.kind",
        "Where this instance registers. embedded: with a router, at registry.address. consul: in Consul. static: nowhere; the router must list the instance.",
        ["embedded", "consul", "static"],
        { default: "embedded" },
      ),
      addresses: addresses(
        "registry.address",
        "gRPC address of the router where this instance registers. With several routers: all their addresses, with commas " +
          "between. Empty: the instance doesn't register, and the router must list it.",
        { default: ["127.0.0.1:3001"], alias: "router" },
      ),
    }),
    engine: section("Engine", {
      kind: choice(
        "engine.kind",
        "Engine to start: embedded, a small model on the CPU; vllm, which needs a model; sim, a simulation. Without this setting and engine.attach: embedded, with the shipped model or the GGUF file of `model`.",
        ENGINE_KINDS,
        { optional: true, alias: "engine" },
      ),
      model: text(
        "model",
        "Name under which the engine serves the model. Empty: the engine's own. With --engine vllm: the model itself, as a Hugging Face id or a folder. With --engine embedded: a GGUF file, or empty for the shipped model.",
        { default: "", env: ["MODEL_ID"] },
      ),
      servedName: text(
        "served_name",
        "Name under which a started vLLM or embedded engine serves its model. Empty: the model's id, the name in its file, or the last part of its path.",
        { default: "" },
      ),
      flags: list(
        "engine.flag",
        "A word for the engine's command line, passed on unchanged. May be repeated; all words after -- are passed on too.",
      ),
      startTimeoutMs: milliseconds(
        "engine.start_timeout_ms",
        "How long the engine may take to load before the start fails.",
        { default: 900_000, min: 1_000, max: 86_400_000 },
      ),
      attach: text(
        "engine.attach",
        "URL of a running engine to use instead of starting one: http://127.0.0.1:8000, or unix:/PATH of its socket.",
        {
          default: "",
          alias: "attach",
        },
      ),
      restartCommand: text(
        "engine.restart_command",
        "Shell command that restarts the attached engine, for when it has died, is wedged, or holds too much unclaimed KV: systemctl restart vllm-prefill. It finds the engine's URL in TANDEM_ENGINE_URL. Empty: the log and `tandem doctor` say which process to restart.",
        { default: "" },
      ),
      apiKey: secret("engine.api_key", "API key of the attached engine."),
      kvAddress: address(
        "engine.kv_address",
        "host:port of the attached engine's KV side channel. Needed with p2p-nccl and p2p-zmq.",
        { optional: true },
      ),
    }),
    vllm: section("vLLM", {
      command: text(
        "vllm.command",
        "Command that starts vLLM: a program, or words such as python3 -m vllm.entrypoints.cli.main. Empty: `vllm` of the active virtual environment, otherwise of the PATH.",
        { default: "" },
      ),
      gpus: text(
        "gpus",
        "GPUs for the started vLLM, in the form of CUDA_VISIBLE_DEVICES: 0 or 2,3. Empty: as inherited.",
        { default: "" },
      ),
      hfToken: secret("hf_token", "Hugging Face token for vLLM.", { env: ["HF_TOKEN"] }),
      poolGib: number(
        "vllm.pool_gib",
        "Pinned host memory that every rank of a vLLM with p2p-nccl allocates at its start, for KV that doesn't fit on its GPU.",
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
        "Host of the engine's KV side channel, as its partners dial it, and the first port to try. The engine takes the first free port, and a higher one after every restart. A bare port keeps the host.",
        { default: preset.kv, env: [preset.kvEnv] },
      ),
      advertise: text(
        "kv.advertise",
        "Host under which partners dial the KV side channel, if different from the host of kv.listen. The port stays the same.",
        { optional: true },
      ),
    }),
    legs: section("Legs", {
      slots: integer(
        "slots",
        role === "decode"
          ? "KV slots: limit on reservations and running answers together. Further legs are refused."
          : "Limit on concurrent prompts. Further legs are refused.",
        { default: preset.slots, min: 1, max: 65_536, unit: "legs" },
      ),
      stallMs: milliseconds(
        "stall_ms",
        "An engine that has work and counts no token for this long is considered wedged and is restarted. Prompts get more " +
          "time, by their length and the rate seen so far. Answers held back by a slow client don't count.",
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
      memoryLimitMib,
      logLevel: choice("log.level", "Lowest level that is logged. Left out: TANDEM_LOG_LEVEL, or info.", LOG_LEVELS, {
        optional: true,
      }),
    }),
  };
}

export type InstanceConfig = Config<ReturnType<typeof instanceSections>>;

/** Keys of settings that were removed. */
export const REMOVED_INSTANCE_KEYS = {
  "kv.host": "kv.listen sets the host and the first port, as HOST:PORT",
  "kv.port": "kv.listen sets the host and the first port, and --kv.listen=PORT keeps the host",
  "kv.advertise_host": "it is called kv.advertise",
  "watch.limit": "64 routers may watch an instance, and no deployment needs another limit",
  ...REMOVED_CONSUL_KEYS,
} as const;
