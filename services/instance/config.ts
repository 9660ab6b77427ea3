// The settings that prefill and decode instances have in common.
import { address, addresses, choice, integer, list, number, secret, text } from "../common/config.ts";
import { deploymentSettings } from "../common/deployment.ts";
import { LOG_LEVELS } from "../common/log.ts";
import { stateDirSetting } from "../common/state-dir.ts";
import { consulCheckSettings, consulSettings } from "../discovery/consul-settings.ts";
import { ENGINE_KINDS } from "../engine/engine.ts";
import { CONNECTOR_NAMES } from "../kv/index.ts";

export type InstanceRole = "prefill" | "decode";

const DEFAULTS = {
  prefill: { grpc: "127.0.0.1:3101", kvPort: 20_001, kvEnv: "PREFILL_KV_PORT", slots: 64 },
  decode: { grpc: "127.0.0.1:3201", kvPort: 21_001, kvEnv: "DECODE_KV_PORT", slots: 256 },
} as const;

/** The result's type is written out by inference: `defineConfig` needs each setting's own. */
// oxlint-disable-next-line explicit-function-return-type
export function instanceSettings(role: InstanceRole) {
  const preset = DEFAULTS[role];
  return {
    ...deploymentSettings,
    "grpc.listen": address({ default: preset.grpc, alias: "listen", doc: "Where the router connects." }),
    "grpc.advertise": address({
      optional: true,
      doc: "host:port under which others dial this instance, where that is not grpc.listen.",
    }),
    "registry.kind": choice(["embedded", "consul", "static"], {
      default: "embedded",
      doc: "Where this instance registers. embedded: with a router, at registry.address. consul: in Consul. static: nowhere, and the router must list it.",
    }),
    "registry.address": addresses({
      default: ["127.0.0.1:3001"],
      alias: "router",
      doc:
        "The router's gRPC address, where this instance registers; of several routers each one's, with commas between. " +
        "Empty: it doesn't register, and the router must list it.",
    }),
    "engine.kind": choice(ENGINE_KINDS, {
      optional: true,
      alias: "engine",
      doc: "Engine to start: embedded, a small model on the CPU; vllm, which needs a model; sim, a simulation. Left out together with engine.attach: embedded, with the model that ships or the GGUF file of `model`.",
    }),
    "engine.attach": text({
      default: "",
      alias: "attach",
      doc: "URL of a running engine to use instead of starting one: http://127.0.0.1:8000.",
    }),
    "engine.api_key": secret({ doc: "Key that the attached engine wants." }),
    "engine.kv_address": address({
      optional: true,
      doc: "host:port of the attached engine's KV side channel. Needed with p2p-nccl and p2p-zmq.",
    }),
    "engine.flag": list({
      doc: "A word for the engine's command line, passed on as it is. May be given several times; all words after -- are meant so too.",
    }),
    "engine.start_timeout_ms": integer({
      default: 900_000,
      min: 1_000,
      unit: "ms",
      doc: "How long the engine may take to load before the start fails.",
    }),
    "vllm.command": text({
      default: "",
      doc: "The vLLM to start: a program, or words such as python3 -m vllm.entrypoints.cli.main. Empty: `vllm` of the active virtual environment, then of the PATH.",
    }),
    "vllm.pool_gib": number({
      default: 4,
      min: 0.25,
      max: 1_024,
      unit: "GiB",
      doc: "Pinned host memory that every rank of a vLLM with p2p-nccl takes at its start, for KV that its GPU has no room for.",
    }),
    gpus: text({
      default: "",
      doc: "GPUs of the vLLM that is started, as CUDA_VISIBLE_DEVICES names them: 0 or 2,3. Empty: as inherited.",
    }),
    served_name: text({
      default: "",
      doc: "Name under which a started vLLM or embedded engine serves its model. Empty: its id, or what the file says, or the last part of its path.",
    }),
    hf_token: secret({ env: ["HF_TOKEN"], doc: "Hugging Face token for vLLM." }),
    connector: choice(CONNECTOR_NAMES, {
      optional: true,
      doc: "How the KV cache moves between engines. Left out: p2p-zmq with the sim and the embedded engine, nixl with vLLM and with an attached engine.",
    }),
    "kv.port": integer({
      default: preset.kvPort,
      min: 1,
      max: 65_535,
      env: [preset.kvEnv],
      doc: "First port to try for the engine's KV side channel. The first free one is taken, and a higher one after every restart of the engine.",
    }),
    "kv.host": text({ default: "127.0.0.1", doc: "Host of the KV side channel, as its partners dial it." }),
    model: text({
      default: "",
      env: ["MODEL_ID"],
      doc: "Name under which the engine serves the model. Empty: the engine's own. With --engine vllm: the model itself, an id of Hugging Face or a folder. With --engine embedded: a GGUF file; empty: the model that ships.",
    }),
    slots: integer({
      default: preset.slots,
      min: 1,
      max: 65_536,
      unit: "legs",
      doc:
        role === "decode"
          ? "KV slots: reservations and answers at once. One more is refused."
          : "Prompts at once. One more is refused.",
    }),
    "kv.advertise_host": text({
      optional: true,
      doc: "Host under which partners dial the KV side channel, where that is not kv.host. The port is the same.",
    }),
    stall_ms: integer({
      default: 15_000,
      min: 100,
      max: 3_600_000,
      unit: "ms",
      doc:
        "An engine that has work and counts no token for so long is wedged and is started again. Prompts get more: by " +
        "their length and the rate seen so far. An answer that a slow client holds back doesn't count.",
    }),
    ...consulSettings,
    ...consulCheckSettings,
    "drain.grace_ms": integer({
      default: 30_000,
      min: 0,
      unit: "ms",
      doc: "How long running legs may take to end after SIGTERM.",
    }),
    "watch.limit": integer({
      default: 64,
      min: 1,
      max: 4_096,
      unit: "calls",
      doc: "Routers that may watch the load at once.",
    }),
    ...stateDirSetting,
    token: secret({ doc: "Join token that instances, routers and the registry share." }),
    "log.level": choice(LOG_LEVELS, {
      optional: true,
      doc: "Lowest level that is logged. Left out: TANDEM_LOG_LEVEL, else info.",
    }),
  };
}
