// The router's settings. An entry here is all that a setting needs beside its use: flag, variable, key of the file,
// documentation, and with `live: true` also key of Consul's KV store.
import {
  address,
  boolean,
  choice,
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
import { deploymentName } from "../common/deployment.ts";
import { LOG_LEVELS } from "../common/log.ts";
import { consulCheckSettings, consulSettings, REMOVED_CONSUL_KEYS } from "../discovery/consul-settings.ts";

export const POLICY_NAMES = ["round-robin", "least-load"] as const;
export type PolicyName = (typeof POLICY_NAMES)[number];

export const routerConfig = defineConfig(
  "router",
  {
    deployment: section("Deployment", { name: deploymentName }),
    rest: section("OpenAI REST", {
      listen: address(
        "rest.listen",
        "Where OpenAI clients connect. A bare port keeps the host. Port 0 takes a free one.",
        { default: "127.0.0.1:3000", alias: "port", env: ["PROXY_PORT"] },
      ),
      advertise: address(
        "rest.advertise",
        "host:port under which clients reach rest.listen, for the registry to show. Left out: rest.listen.",
        { optional: true },
      ),
      hosts: list(
        "rest.hosts",
        "Further names for rest.listen, such as host.docker.internal. On loopback without api_key, REST answers only where it " +
          "is called localhost, an address, rest.advertise or one of these, so that no web page reaches it under a name of " +
          "its own (DNS rebinding); RouterService likewise without token.",
      ),
      connectionsLimit: integer(
        "connections.limit",
        "Connections of REST clients. One more is closed as soon as it is made.",
        { default: 16_384, min: 1, max: 1_048_576, unit: "connections" },
      ),
      headTimeoutMs: milliseconds(
        "head.timeout_ms",
        "Longest time for the head of a request to arrive. After it the client gets 408 and is cut.",
        { default: 20_000, min: 10 },
      ),
      bodyTimeoutMs: milliseconds(
        "body.timeout_ms",
        "Longest time for a request to arrive whole, body included, however busily its client sends. After it the client gets 408 and is cut.",
        { default: 120_000, min: 10, max: 86_400_000 },
      ),
      bodyLimitBytes: integer("body.limit_bytes", "Largest body of a request. A larger one is refused with 413.", {
        default: 10 * 1024 * 1024,
        min: 1024,
        max: 1024 * 1024 * 1024,
        unit: "bytes",
      }),
      bodyTotalBytes: integer(
        "body.total_bytes",
        "Bodies of all requests that are being read, wait or run. A request that doesn't fit is refused with 429.",
        { default: 512 * 1024 * 1024, min: 1024, max: 64 * 1024 * 1024 * 1024, unit: "bytes" },
      ),
      bufferBytes: integer(
        "stream.buffer_bytes",
        "Bytes of one answer that may wait for a slow client before its decode leg is held back.",
        { default: 256 * 1024, min: 16 * 1024, max: 64 * 1024 * 1024, unit: "bytes" },
      ),
      stallMs: milliseconds(
        "client.stall_ms",
        "A client that takes nothing for this long while bytes wait for it is cut.",
        { default: 60_000 },
      ),
    }),
    grpc: section("gRPC", {
      listen: address(
        "grpc.listen",
        "Where instances register and gRPC clients connect. A bare port keeps the host. Beyond loopback it needs a token.",
        { default: "127.0.0.1:3001", alias: "grpc-port" },
      ),
      advertise: address(
        "grpc.advertise",
        "host:port under which others dial grpc.listen, for the registry to show and to check. Left out: grpc.listen.",
        { optional: true },
      ),
    }),
    access: section("Secrets", {
      apiKey: secret(
        "api_key",
        "Key that REST clients and callers of InferenceService send as `Authorization: Bearer ...`. Unset: everyone may " +
          "use the models.",
      ),
      token: secret(
        "token",
        "Join token of the deployment: guards registration, instances and RouterService. The same on every process.",
      ),
    }),
    registry: section("Instances", {
      kind: choice(
        "registry.kind",
        "Where instances are found. embedded: they register with this router. consul: they register in Consul, and so " +
          "does this router. static: only `instances`.",
        ["embedded", "consul", "static"],
        { default: "embedded" },
      ),
      instances: list("instances", "gRPC address of an instance that doesn't register by itself. Given once for each."),
      connectTimeoutMs: milliseconds(
        "connect.timeout_ms",
        "Longest time for a connection to an instance to be made. After it the leg is tried elsewhere.",
        { default: 2_000, max: 60_000 },
      ),
      checkPairs: boolean(
        "pair.check",
        "Probe vLLM engines before they take traffic, and use none whose decode does not answer from the KV it was sent.",
        { default: true },
      ),
    }),
    placement: section("Placement and fallbacks", {
      prefill: choice("prefill.policy", "Picks the prefill instance of a request.", POLICY_NAMES, {
        default: "least-load",
        live: true,
      }),
      decode: choice(
        "decode.policy",
        "Picks the decode instance of a request, independently of the prefill instance.",
        POLICY_NAMES,
        { default: "least-load", live: true },
      ),
      unpaired: boolean(
        "fallback.unpaired",
        "While no prefill instance is left, decode instances serve without it, where the connector allows it (nixl).",
        { default: true },
      ),
      unpairedTokens: integer(
        "unpaired.below_tokens",
        "Prompts of fewer tokens, estimated from the body's size, go to decode without prefill, where the connector allows it. 0: none.",
        { default: 0, min: 0, max: 1_048_576, unit: "tokens", live: true },
      ),
    }),
    queue: section("Admission and queue", {
      legsLimit: integer(
        "admission.limit",
        "Legs that run at once, whatever the decode instances offer. The lower of the two holds.",
        { default: 4096, min: 1, max: 65_536, unit: "legs", live: true },
      ),
      limit: integer(
        "queue.limit",
        "Requests that may wait while all decode slots are taken, of all tenants together. One more is refused with 429: " +
          "it, or the last one of a tenant that has more of them waiting.",
        { default: 256, min: 0, max: 65_536, unit: "requests", live: true },
      ),
      timeoutMs: milliseconds(
        "queue.timeout_ms",
        "Longest wait in the queue. After it the request is refused with 503.",
        { default: 30_000, live: true },
      ),
    }),
    request: section("One request", {
      legsLimit: integer(
        "legs.limit",
        "Answers that one request may ask for: n times the prompts in its list. Each runs as a pair of legs.",
        { default: 64, min: 1, max: 4096, unit: "legs", live: true },
      ),
      deadlineMs: milliseconds(
        "request.deadline_ms",
        "Longest time from the end of a request's body to the end of its answer.",
        { default: 3_600_000, max: 86_400_000, live: true },
      ),
      strict: boolean(
        "strict",
        "No retry, no decode alone, and nothing while the registry is away: an error instead. One request asks for it with `x-tandem-strict: true`.",
        { default: false },
      ),
    }),
    relay: section("Legs and retries", {
      prefillFloorMs: milliseconds(
        "prefill.floor_ms",
        "Time that every prefill is given before the length of its prompt is counted.",
        { default: 10_000, min: 0, live: true },
      ),
      prefillSlack: number(
        "prefill.slack",
        "How many times longer a prefill may take than the rate seen on its instance promises for the prompt and what " +
          "waits before it. 0: only prefill.timeout_ms holds.",
        { default: 10, min: 0, max: 10_000, live: true },
      ),
      prefillTimeoutMs: milliseconds(
        "prefill.timeout_ms",
        "Longest prefill of one prompt, whatever its length. After it the leg is tried elsewhere.",
        { default: 120_000, live: true },
      ),
      transferTimeoutMs: milliseconds(
        "transfer.timeout_ms",
        "Longest time from prefill's answer to the first token of a stream: KV transfer and first decode step; more for the first transfer of two engines (nixl: 60 s). After it the leg is tried elsewhere.",
        { default: 30_000, live: true },
      ),
      firstTokenTimeoutMs: milliseconds(
        "first_token.timeout_ms",
        "Longest time from the admission of a request to the first token of its stream, all attempts together.",
        { default: 300_000, max: 86_400_000, live: true },
      ),
      answerFloorMs: milliseconds(
        "answer.floor_ms",
        "Time that every non-streaming answer is given from prefill's answer on, before its tokens are counted.",
        { default: 60_000, live: true },
      ),
      answerSlack: number(
        "answer.slack",
        "How many times longer a non-streaming answer may take than max_tokens would at the slowest pace seen lately on its " +
          "instance. After it the leg is tried elsewhere. 0: only request.deadline_ms holds.",
        { default: 10, min: 0, max: 10_000, live: true },
      ),
      stallMs: milliseconds(
        "stall_ms",
        "A stream that brings no further token for this long has failed. One that a slow client holds back doesn't count.",
        { default: 30_000, live: true },
      ),
      retryLimit: integer(
        "retry.limit",
        "How often a request that failed before its first byte was written, or that is written again (replay.mode), is tried again. 0 turns it off.",
        { default: 2, min: 0, max: 16, unit: "retries", live: true },
      ),
      retryRatio: number(
        "retry.ratio",
        "Retries of the whole router for each request that comes, so that a failing fleet isn't buried under them.",
        { default: 0.2, min: 0, max: 16, unit: "retries", live: true },
      ),
      replayMode: choice(
        "replay.mode",
        "What becomes of a greedy or seeded stream that breaks after its first byte. It is written again on another pair, and goes on " +
          "where the client has every byte that was written again; else it ends with an error. proven: on engines that are known to " +
          "repeat themselves (embedded, sim). always: on vLLM too. never: it ends with an error at once.",
        ["never", "proven", "always"],
        { default: "proven", live: true },
      ),
      replayTimeoutMs: milliseconds(
        "replay.timeout_ms",
        "Longest time from the failure of a stream to where another pair has written again what its client has. After it, the stream ends with the error.",
        { default: 10_000, max: 600_000, live: true },
      ),
    }),
    consul: section("Consul", {
      ...consulSettings,
      ...consulCheckSettings,
      kvPrefix: text(
        "consul.kv_prefix",
        "Folder of Consul's KV store with settings that change while the router runs: PREFIX/NAME/queue.limit for the " +
          "deployment of that name. They beat all other sources. Empty: none are read.",
        { default: "tandem/config" },
      ),
    }),
    process: section("The process", {
      drainGraceMs: milliseconds(
        "drain.grace_ms",
        "How long running requests may go on after SIGTERM. SIGINT leaves them half a second at most.",
        { default: 30_000, min: 0 },
      ),
      logLevel: choice("log.level", "The least serious event that is logged.", LOG_LEVELS, { default: "info" }),
    }),
  },
  {
    summary: "Takes OpenAI requests over REST and gRPC, and runs each on a prefill and a decode instance.",
    usage: "tandem router [--port 3000] [--grpc-port 3001] [--api-key KEY] [--KEY VALUE ...]",
    removed: {
      "reserve.timeout_ms": "a decode instance has 2 s to answer a reservation",
      "canary.every_ms": "a probe is sent every half second to what is out",
      "canary.timeout_ms": "a probe has 2 s",
      "breaker.failures": "five legs in a row that fail take an instance or a pair out",
      "fallback.first_prefill_ms":
        "the first prefill instance of a model is waited for 15 s; --no-fallback.unpaired never lets decode serve alone",
      "fallback.aggregated": "give fallback.unpaired",
      "fallback.direct_tokens": "give unpaired.below_tokens",
      "retry.per_s": "retry.ratio sets the budget of retries, and ten in each second come on top",
      "receipts.limit": "the last 1000 receipts are kept",
      "registry.limit": "1024 instances may register",
      "watchers.limit": "64 calls may watch instances, and 64 requests",
      print_config: "give the flag --print-config",
      ...REMOVED_CONSUL_KEYS,
    },
  },
);

export type RouterConfig = Config<(typeof routerConfig)["schema"]>;
/** How long the parts of a leg may take, and what is tried again. */
export type RelayLimits = RouterConfig["relay"]["current"];
