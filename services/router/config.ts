// The router's settings.
import {
  address,
  boolean,
  choice,
  defineConfig,
  integer,
  list,
  number,
  secret,
  text,
  type Config,
} from "../common/config.ts";
import { deploymentSettings } from "../common/deployment.ts";
import { consulCheckSettings, consulSettings } from "../discovery/consul-settings.ts";
import { POLICY_NAMES } from "./placement/policies.ts";
import { REPLAY_MODES } from "./request/request.ts";

export const routerConfig = defineConfig(
  "router",
  {
    ...deploymentSettings,
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
    "rest.advertise": address({
      optional: true,
      doc: "host:port under which clients reach rest.listen, for the registry to show. Left out: rest.listen.",
    }),
    "rest.hosts": list({
      doc:
        "Further names for rest.listen, such as host.docker.internal. On loopback without api_key, REST answers only where it " +
        "is called localhost, an address, rest.advertise or one of these, so that no web page reaches it under a name of " +
        "its own (DNS rebinding); RouterService likewise without token.",
    }),
    "grpc.advertise": address({
      optional: true,
      doc: "host:port under which others dial grpc.listen, for the registry to show and to check. Left out: grpc.listen.",
    }),
    "registry.kind": choice(["embedded", "consul", "static"], {
      default: "embedded",
      doc:
        "Where instances are found. embedded: they register with this router. consul: they register in Consul, and so " +
        "does this router. static: only `instances`.",
    }),
    api_key: secret({
      doc:
        "What REST clients and callers of InferenceService send as `Authorization: Bearer ...`. Unset: everyone may " +
        "use the models.",
      alias: "api-key",
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
    "head.timeout_ms": integer({
      default: 20_000,
      min: 10,
      max: 3_600_000,
      unit: "ms",
      doc: "For the head of a request to arrive. After it the client gets 408 and is cut.",
    }),
    "body.timeout_ms": integer({
      default: 120_000,
      min: 10,
      max: 86_400_000,
      unit: "ms",
      doc: "For a request to arrive whole, body included, however busily its client sends. After it the client gets 408 and is cut.",
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
      doc:
        "Requests that may wait while all decode slots are taken, of all tenants together. One more is refused with 429: " +
        "it, or the last one of a tenant that has more of them waiting.",
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
    "connect.timeout_ms": integer({
      default: 2_000,
      min: 1,
      max: 60_000,
      unit: "ms",
      doc: "For a connection to an instance to be made. After it the leg is tried elsewhere.",
    }),
    "reserve.timeout_ms": integer({
      default: 2_000,
      min: 1,
      max: 3_600_000,
      unit: "ms",
      doc: "For a decode instance to answer a reservation, which costs it nothing. After it the leg is tried elsewhere.",
    }),
    "prefill.floor_ms": integer({
      default: 10_000,
      min: 0,
      max: 3_600_000,
      unit: "ms",
      doc: "Time that every prefill is given before the length of its prompt is counted.",
    }),
    "prefill.slack": number({
      default: 10,
      min: 0,
      max: 10_000,
      doc:
        "How many times longer a prefill may take than the rate seen on its instance promises for the prompt and what " +
        "waits before it. 0: only prefill.timeout_ms holds.",
    }),
    "prefill.timeout_ms": integer({
      default: 120_000,
      min: 1,
      max: 3_600_000,
      unit: "ms",
      doc: "Longest prefill of one prompt, whatever its length. After it the leg is tried elsewhere.",
    }),
    "transfer.timeout_ms": integer({
      default: 30_000,
      min: 1,
      max: 3_600_000,
      unit: "ms",
      doc: "From prefill's answer to the first token of a stream: KV transfer and first decode step; more for the first transfer of two engines (nixl: 60 s). After it the leg is tried elsewhere.",
    }),
    "first_token.timeout_ms": integer({
      default: 300_000,
      min: 1,
      max: 86_400_000,
      unit: "ms",
      doc: "From the admission of a request to the first token of its stream, with all that was tried again.",
    }),
    "answer.floor_ms": integer({
      default: 60_000,
      min: 1,
      max: 3_600_000,
      unit: "ms",
      doc: "Time that every answer in one piece is given from prefill's answer on, before its tokens are counted.",
    }),
    "answer.slack": number({
      default: 10,
      min: 0,
      max: 10_000,
      doc:
        "How many times longer an answer in one piece may take than max_tokens would at the slowest pace seen lately on its " +
        "instance. After it the leg is tried elsewhere. 0: only request.deadline_ms holds.",
    }),
    stall_ms: integer({
      default: 30_000,
      min: 1,
      max: 3_600_000,
      unit: "ms",
      doc: "A stream that brings no further token for so long has failed. One that a slow client holds back doesn't count.",
    }),
    "retry.limit": integer({
      default: 2,
      min: 0,
      max: 16,
      unit: "retries",
      doc: "How often a request that failed before its first byte was written, or that is written again (replay.mode), is tried again. 0 turns it off.",
    }),
    "retry.ratio": number({
      default: 0.2,
      min: 0,
      max: 16,
      unit: "retries",
      doc: "Retries of the whole router for each request that comes, so that a failing fleet isn't buried under them.",
    }),
    "retry.per_s": number({
      default: 10,
      min: 0,
      max: 10_000,
      unit: "retries",
      doc: "Retries that there are in each second beside those of retry.ratio.",
    }),
    "replay.mode": choice(REPLAY_MODES, {
      default: "proven",
      doc:
        "What becomes of a greedy or seeded stream that breaks after its first byte. It is written again on another pair, and goes on " +
        "where the client has every byte that was written again; else it ends with an error. proven: on engines that are known to " +
        "repeat themselves (embedded, sim). always: on vLLM too. never: it ends with an error at once.",
    }),
    "replay.timeout_ms": integer({
      default: 10_000,
      min: 1,
      max: 600_000,
      unit: "ms",
      doc: "From the failure of a stream to where another pair has written again what its client has. After it, the stream ends with the error.",
    }),
    "breaker.failures": integer({
      default: 5,
      min: 1,
      max: 1_000,
      unit: "legs",
      doc:
        "Legs in a row that fail on an instance, or on a pair, before it gets no more. One that stands still is enough. " +
        "A probe brings it back.",
    }),
    "pair.check": boolean({
      default: true,
      doc: "Probe vLLM engines before they take traffic, and use none whose decode does not answer from the KV it was sent.",
    }),
    "fallback.aggregated": boolean({
      default: true,
      doc: "While no prefill instance is left, decode instances serve alone, where the connector allows it (nixl).",
    }),
    "fallback.first_prefill_ms": integer({
      default: 15_000,
      min: 0,
      max: 3_600_000,
      unit: "ms",
      doc:
        "How long a model's first prefill instance is waited for, from its first decode instance on, before decode serves alone: " +
        "a router that has just started may not have heard of it yet. Once there was one, decode alone makes up for it at once.",
    }),
    "fallback.direct_tokens": integer({
      default: 0,
      min: 0,
      max: 1_048_576,
      unit: "tokens",
      doc: "Prompts of fewer tokens, estimated from the body's size, go to decode alone where the connector allows it. 0: none.",
    }),
    strict: boolean({
      default: false,
      doc: "No retry, no decode alone, and nothing while the registry is away: an error instead. One request asks for it with `x-tandem-strict: true`.",
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
    ...consulSettings,
    ...consulCheckSettings,
    "consul.kv_prefix": text({
      default: "tandem/config",
      doc:
        "Folder of Consul's KV store with settings that change while the router runs: PREFIX/NAME/queue.limit for the " +
        "deployment of that name. They beat all other sources. Empty: none are read.",
    }),
    "drain.grace_ms": integer({
      default: 30_000,
      min: 0,
      max: 3_600_000,
      unit: "ms",
      doc: "After SIGTERM: how long running requests may go on. SIGINT leaves them one second at most.",
    }),
    "log.level": choice(["debug", "info", "warn", "error"], {
      default: "info",
      doc: "The least serious event that is logged.",
    }),
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
