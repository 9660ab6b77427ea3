// The router's settings. A setting needs one entry here and its use. The entry gives it a flag, a variable, a key in
// the file, its documentation and, with `live: true`, a key in Consul's KV store.
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
import { memoryLimitMib } from "../common/watchdog.ts";
import { consulCheckSettings, consulSettings, REMOVED_CONSUL_KEYS } from "../discovery/consul-settings.ts";
import { restTls, tlsSettings } from "../rpc/tls-settings.ts";

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
        "Address (host:port) that the registry shows to REST clients. Default: rest.listen.",
        { optional: true },
      ),
      hosts: list(
        "rest.hosts",
        "Adds names that clients may use for rest.listen, such as host.docker.internal. On loopback without api_key, " +
          "REST answers only requests for localhost, an IP address, rest.advertise or one of these names, so that no " +
          "web page reaches it under a name of its own (DNS rebinding). RouterService does the same without token.",
      ),
      tls: restTls,
      connectionsLimit: integer(
        "connections.limit",
        "Limits the open connections of REST clients. A further connection is closed at once.",
        { default: 16_384, min: 1, max: 1_048_576, unit: "connections" },
      ),
      headTimeoutMs: milliseconds(
        "head.timeout_ms",
        "Timeout for receiving the request headers. After it the client gets 408 and its connection is closed.",
        { default: 20_000, min: 10 },
      ),
      bodyTimeoutMs: milliseconds(
        "body.timeout_ms",
        "Timeout for receiving a whole request, body included, even if its client keeps sending. After it the client " +
          "gets 408 and its connection is closed.",
        { default: 120_000, min: 10, max: 86_400_000 },
      ),
      bodyLimitBytes: integer(
        "body.limit_bytes",
        "Limits the size of a request body. A larger body is refused with 413.",
        {
          default: 10 * 1024 * 1024,
          min: 1024,
          max: 1024 * 1024 * 1024,
          unit: "bytes",
        },
      ),
      bodyTotalBytes: integer(
        "body.total_bytes",
        "Limits the total size of the bodies of requests that are being read, wait or run. A request that doesn't " +
          "fit is refused with 429.",
        { default: 512 * 1024 * 1024, min: 1024, max: 64 * 1024 * 1024 * 1024, unit: "bytes" },
      ),
      bufferBytes: integer(
        "stream.buffer_bytes",
        "Limits the bytes of one answer that wait for a slow client. At the limit its decode leg is held back.",
        { default: 256 * 1024, min: 16 * 1024, max: 64 * 1024 * 1024, unit: "bytes" },
      ),
      stallMs: milliseconds(
        "client.stall_ms",
        "Cuts a client that takes less than 128 bytes a second for this long while bytes wait for it.",
        { default: 60_000 },
      ),
    }),
    grpc: section("gRPC", {
      listen: address(
        "grpc.listen",
        "Where instances register and gRPC clients connect. A bare port keeps the host. Beyond loopback it needs a " +
          "token.",
        { default: "127.0.0.1:3001", alias: "grpc-port" },
      ),
      advertise: address(
        "grpc.advertise",
        "Address (host:port) that the registry shows to others for gRPC, and checks. Default: grpc.listen.",
        { optional: true },
      ),
      connectionsLimit: integer(
        "grpc.connections.limit",
        "Limits the open gRPC connections. At the limit a new connection takes the place of one without credentials; " +
          "if there is none, the new one is closed at once.",
        { default: 4_096, min: 16, max: 1_048_576, unit: "connections" },
      ),
    }),
    access: section("Secrets", {
      apiKey: secret(
        "api_key",
        "Key that REST clients and callers of InferenceService must send as `Authorization: Bearer ...`. Unset: " +
          "everyone may use the models.",
      ),
      token: secret(
        "token",
        "Join token of the deployment. It guards registration, instances and RouterService. Every process needs the " +
          "same one.",
      ),
    }),
    tls: section("TLS", tlsSettings),
    registry: section("Instances", {
      kind: choice(
        "registry.kind",
        "Where instances are found. embedded: they register with this router. consul: they register in Consul, and " +
          "so does this router. static: only `instances`.",
        ["embedded", "consul", "static"],
        { default: "embedded" },
      ),
      instances: list(
        "instances",
        "Adds an instance that doesn't register by itself, by its gRPC address. Give the flag once for each instance.",
      ),
      connectTimeoutMs: milliseconds(
        "connect.timeout_ms",
        "Timeout for connecting to an instance. After it the leg is tried elsewhere.",
        { default: 2_000, max: 60_000 },
      ),
      checkPairs: boolean(
        "pair.check",
        "Probes vLLM engines before they take traffic, and uses none whose decode does not answer from the KV it was " +
          "sent.",
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
        "Lets decode instances serve without prefill while no prefill instance is left, if the connector allows it " +
          "(nixl).",
        { default: true },
      ),
      unpairedTokens: integer(
        "unpaired.below_tokens",
        "Serves prompts of fewer tokens than this, estimated from the body's size, on decode without prefill, if the " +
          "connector allows it. 0: none.",
        { default: 0, min: 0, max: 1_048_576, unit: "tokens", live: true },
      ),
    }),
    queue: section("Admission and queue", {
      legsLimit: integer(
        "admission.limit",
        "Limits the legs that run at once. If the decode instances offer fewer slots, their number is the limit.",
        { default: 4096, min: 1, max: 65_536, unit: "legs", live: true },
      ),
      limit: integer(
        "queue.limit",
        "Limits the requests of all tenants that wait while all decode slots are taken. At the limit a new request is " +
          "refused with 429, or it displaces the last one of a tenant that has more of them waiting.",
        { default: 256, min: 0, max: 65_536, unit: "requests", live: true },
      ),
      targetMs: milliseconds(
        "queue.target_ms",
        "Acceptable wait in a queue that does not get shorter; at least a quarter of the time that requests run. " +
          "When waits have been longer for five seconds, longer waits are refused with 429 and the newest requests " +
          "go first, until the queue is short again. 0: never.",
        { default: 1_000, min: 0, live: true },
      ),
      timeoutMs: milliseconds(
        "queue.timeout_ms",
        "Timeout for waiting in the queue. After it the request is refused with 503.",
        { default: 30_000, live: true },
      ),
    }),
    request: section("One request", {
      legsLimit: integer(
        "legs.limit",
        "Limits the answers that one request may ask for: n times the prompts in its list. Each runs as a pair of " +
          "legs.",
        { default: 64, min: 1, max: 4096, unit: "legs", live: true },
      ),
      deadlineMs: milliseconds(
        "request.deadline_ms",
        "Timeout from the end of a request's body to the end of its answer.",
        { default: 3_600_000, max: 86_400_000, live: true },
      ),
      strict: boolean(
        "strict",
        "Answers with an error instead of a fallback: no retry, no decode without prefill, and nothing while the " +
          "registry is away. A single request asks for this with `x-tandem-strict: true`.",
        { default: false },
      ),
    }),
    relay: section("Legs and retries", {
      prefillFloorMs: milliseconds(
        "prefill.floor_ms",
        "Base timeout of every prefill. The time for the length of its prompt is added to it.",
        { default: 10_000, min: 0, live: true },
      ),
      prefillSlack: number(
        "prefill.slack",
        "Allows a prefill this many times the time that its prompt and the prompts waiting before it take at the " +
          "rate seen on its instance. 0: only prefill.timeout_ms applies.",
        { default: 10, min: 0, max: 10_000, live: true },
      ),
      prefillTimeoutMs: milliseconds(
        "prefill.timeout_ms",
        "Timeout for the prefill of one prompt of any length. After it the leg is tried elsewhere.",
        { default: 120_000, live: true },
      ),
      transferTimeoutMs: milliseconds(
        "transfer.timeout_ms",
        "Timeout from prefill's answer to the first token, for the KV transfer and the first decode step. The first " +
          "transfer between two engines gets more (nixl: 60 s). After the timeout the leg is tried elsewhere.",
        { default: 30_000, live: true },
      ),
      firstTokenTimeoutMs: milliseconds(
        "first_token.timeout_ms",
        "Timeout from the admission of a request to the first token of its stream, for all attempts together.",
        { default: 300_000, max: 86_400_000, live: true },
      ),
      stallMs: milliseconds(
        "stall_ms",
        "Fails an answer that brings no further token for this long. A stream that a slow client holds back doesn't " +
          "count. A non-streaming answer whose tokens its instance can't report gets this and transfer.timeout_ms " +
          "together, and ten times the time of its tokens at the slowest pace seen lately.",
        { default: 30_000, live: true },
      ),
      retryLimit: integer(
        "retry.limit",
        "Limits the retries of a request that failed before its first byte was written, or that is replayed " +
          "(replay.mode). 0 turns retries off.",
        { default: 2, min: 0, max: 16, unit: "retries", live: true },
      ),
      retryRatio: number(
        "retry.ratio",
        "Allows the whole router this many retries for each incoming request, so that retries don't overload a " +
          "failing fleet.",
        { default: 0.2, min: 0, max: 16, unit: "retries", live: true },
      ),
      quarantineLimit: integer(
        "quarantine.limit",
        "Limits the request bodies that are refused for a while because they made engines fail on two pairs that " +
          "serve other requests. 0: none is.",
        { default: 1_024, min: 0, max: 65_536, unit: "bodies", live: true },
      ),
      quarantineHoldMs: milliseconds(
        "quarantine.hold_ms",
        "Limits how long such a body is refused. The first time it is a tenth of this, and it doubles each time.",
        { default: 300_000, max: 86_400_000, live: true },
      ),
      hedgeRatio: number(
        "hedge.ratio",
        "Lets this share of requests be hedged: a request whose first byte is late for its instance also runs on " +
          "another pair, and the first to answer wins. 16 hedges are saved at most. 0: none.",
        { default: 0.05, min: 0, max: 1, unit: "hedges", live: true },
      ),
      replayMode: choice(
        "replay.mode",
        "Decides when a greedy or seeded stream that breaks after its first byte is replayed. A replay writes the " +
          "stream again on another pair. If it repeats every byte that the client has, the stream continues; " +
          "otherwise the stream ends with an error. proven: replays on engines that are known to repeat themselves " +
          "(embedded, sim). always: replays on vLLM too. never: ends the stream with an error at once.",
        ["never", "proven", "always"],
        { default: "proven", live: true },
      ),
      replayTimeoutMs: milliseconds(
        "replay.timeout_ms",
        "Timeout for a replay to repeat what the client has, from the failure of the stream on. After it the stream " +
          "ends with the error.",
        { default: 10_000, max: 600_000, live: true },
      ),
    }),
    consul: section("Consul", {
      ...consulSettings,
      ...consulCheckSettings,
      kvPrefix: text(
        "consul.kv_prefix",
        "Names the folder in Consul's KV store that holds settings which change while the router runs: " +
          "PREFIX/NAME/queue.limit for the deployment called NAME. They override all other sources. Empty: none are " +
          "read.",
        { default: "tandem/config" },
      ),
    }),
    process: section("The process", {
      drainGraceMs: milliseconds(
        "drain.grace_ms",
        "Gives running requests this long to end after SIGTERM. SIGINT gives them half a second at most.",
        { default: 30_000, min: 0 },
      ),
      memoryLimitMib,
      logLevel: choice("log.level", "Sets the least serious level that is logged.", LOG_LEVELS, { default: "info" }),
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
        "the router waits 15 s for the first prefill instance of a model; with --no-fallback.unpaired decode never " +
        "serves unpaired",
      "fallback.aggregated": "give fallback.unpaired",
      "fallback.direct_tokens": "give unpaired.below_tokens",
      "answer.floor_ms": "transfer.timeout_ms and stall_ms bound a non-streaming answer as they bound a stream",
      "answer.slack": "transfer.timeout_ms and stall_ms bound a non-streaming answer as they bound a stream",
      "retry.per_s": "retry.ratio sets the budget of retries, and ten more are allowed in each second",
      "receipts.limit": "the last 1000 receipts are kept",
      "registry.limit": "1024 instances may register",
      "watchers.limit": "64 calls may watch instances, and 64 requests",
      print_config: "give the flag --print-config",
      ...REMOVED_CONSUL_KEYS,
    },
  },
);

export type RouterConfig = Config<(typeof routerConfig)["schema"]>;
/** Time limits for the parts of a leg, and rules for retries. */
export type RelayLimits = RouterConfig["relay"]["current"];
