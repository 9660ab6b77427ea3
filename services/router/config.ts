// The router's settings.
import { address, boolean, choice, defineConfig, integer, list, secret, type Config } from "../common/config.ts";
import { POLICY_NAMES } from "./policy/index.ts";

export const routerConfig = defineConfig(
  "router",
  {
    "rest.listen": address({
      default: "127.0.0.1:3000",
      doc: "Where OpenAI clients connect. A bare port keeps the host. Port 0 takes a free one.",
      alias: "port",
      env: ["PROXY_PORT"],
    }),
    "grpc.listen": address({
      default: "127.0.0.1:3001",
      doc: "Where instances register and gRPC clients connect. A bare port keeps the host. Beyond loopback it needs a token.",
      alias: "grpc-port",
    }),
    api_key: secret({
      doc:
        "What REST clients and callers of InferenceService send as `Authorization: Bearer ...`. Unset: everyone may " +
        "use the models.",
      alias: "api-key",
      env: ["OPENAI_API_KEY"],
    }),
    token: secret({
      doc: "Join token of the deployment: guards registration, instances and RouterService. The same on every process.",
    }),
    instances: list({
      doc: "gRPC address of an instance that doesn't register by itself. Given once for each.",
    }),
    "prefill.policy": choice(POLICY_NAMES, { default: "least-load", doc: "Picks the prefill instance of a request." }),
    "decode.policy": choice(POLICY_NAMES, {
      default: "least-load",
      doc: "Picks the decode instance of a request, independently of the prefill instance.",
    }),
    "body.limit_bytes": integer({
      default: 10 * 1024 * 1024,
      min: 1024,
      max: 1024 * 1024 * 1024,
      unit: "bytes",
      doc: "Largest body of a request. A larger one is refused with 413.",
    }),
    "body.total_bytes": integer({
      default: 512 * 1024 * 1024,
      min: 1024,
      max: 64 * 1024 * 1024 * 1024,
      unit: "bytes",
      doc: "Bodies of all requests that are being read, wait or run. A request that doesn't fit is refused with 429.",
    }),
    "connections.limit": integer({
      default: 16_384,
      min: 1,
      max: 1_048_576,
      unit: "connections",
      doc: "Connections of REST clients. One more is closed as soon as it is made.",
    }),
    "legs.limit": integer({
      default: 64,
      min: 1,
      max: 4096,
      unit: "legs",
      doc: "Answers that one request may ask for: n times the prompts in its list. Each runs as a pair of legs.",
    }),
    "admission.limit": integer({
      default: 4096,
      min: 1,
      max: 65_536,
      unit: "legs",
      doc: "Legs that run at once, whatever the decode instances offer. The lower of the two holds.",
    }),
    "queue.limit": integer({
      default: 256,
      min: 0,
      max: 65_536,
      unit: "requests",
      doc: "Requests that may wait while all decode slots are taken. One more is refused with 429.",
    }),
    "queue.timeout_ms": integer({
      default: 30_000,
      min: 1,
      max: 3_600_000,
      unit: "ms",
      doc: "Longest wait in the queue. After it the request is refused with 503.",
    }),
    "request.deadline_ms": integer({
      default: 3_600_000,
      min: 1,
      max: 86_400_000,
      unit: "ms",
      doc: "Longest time from the end of a request's body to the end of its answer.",
    }),
    "prefill.timeout_ms": integer({
      default: 120_000,
      min: 1,
      max: 3_600_000,
      unit: "ms",
      doc: "Longest prefill of one prompt. After it the leg has failed.",
    }),
    stall_ms: integer({
      default: 30_000,
      min: 1,
      max: 3_600_000,
      unit: "ms",
      doc: "A decode leg that brings no token for so long has failed. A leg that a slow client holds back doesn't count.",
    }),
    "retry.limit": integer({
      default: 2,
      min: 0,
      max: 16,
      unit: "retries",
      doc: "How often a request that failed before its first byte was written is tried again. 0 turns retries off.",
    }),
    "stream.buffer_bytes": integer({
      default: 256 * 1024,
      min: 16 * 1024,
      max: 64 * 1024 * 1024,
      unit: "bytes",
      doc: "Bytes of one answer that may wait for a slow client before its decode leg is held back.",
    }),
    "client.stall_ms": integer({
      default: 60_000,
      min: 1,
      max: 3_600_000,
      unit: "ms",
      doc: "A client that takes nothing for so long while bytes wait for it is cut.",
    }),
    "receipts.limit": integer({
      default: 1000,
      min: 1,
      max: 100_000,
      unit: "receipts",
      doc: "Ended requests whose receipts are kept.",
    }),
    "registry.limit": integer({
      default: 1024,
      min: 1,
      max: 65_536,
      unit: "instances",
      doc: "Instances that may register here.",
    }),
    "watchers.limit": integer({
      default: 64,
      min: 1,
      max: 4096,
      unit: "calls",
      doc: "Calls that may watch instances, and as many again that may watch requests.",
    }),
    "drain.grace_ms": integer({
      default: 30_000,
      min: 0,
      max: 3_600_000,
      unit: "ms",
      doc: "After SIGTERM: how long running requests may go on. SIGINT leaves them one second at most.",
    }),
    "log.level": choice(["debug", "info", "warn", "error"], { default: "info", doc: "The least serious event that is logged." }),
    print_config: boolean({
      default: false,
      doc: "Prints every setting with where it came from, and exits.",
      alias: "print-config",
    }),
  },
  {
    summary: "Takes OpenAI requests over REST and gRPC, and runs each on a prefill and a decode instance.",
    usage: "tandem router [--port 3000] [--grpc-port 3001] [--api-key KEY] [--KEY VALUE ...]",
  },
);

export type RouterConfig = Config<(typeof routerConfig)["schema"]>;
