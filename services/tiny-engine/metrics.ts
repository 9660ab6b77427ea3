// The engine's metrics under vLLM's names. vllm-metrics.json has the families and their help texts, from a transcript of
// vLLM 0.32; here are their values. Only engine steps set the gauges, so on a wedged engine they freeze, as vLLM's do.
// A few more, under `tandem:`, show what vLLM's leave out; they are counted at the moment of the question.
import type { SequenceRequest } from "./engine.ts";
import type { KvModel, KvStages } from "./kv/connector.ts";
import { familyText, histogram, observe, type Histogram, type Labels, type Sample } from "./prometheus-text.ts";
import type { Sequence } from "./sequence.ts";
import vllm from "./vllm-metrics.json" with { type: "json" };

const OWN_HELP = {
  "tandem:kv_held": "Transferred KV that this engine holds, by stage.",
  "tandem:kv_late": "KV transfers turned away because their request had been settled before they arrived.",
};

export type FinishedReason = "stop" | "length" | "abort" | "error" | "repetition";

const SECONDS_LONG = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680];
const SECONDS_TTFT = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
];
const SECONDS_TOKEN = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80];
const SECONDS_TRANSFER = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 5];

function histograms(maxLength: number) {
  const tokens = bucketsUpTo(maxLength);
  return {
    request_prompt_tokens: histogram(tokens),
    request_generation_tokens: histogram(tokens),
    request_max_num_generation_tokens: histogram(tokens),
    request_params_max_tokens: histogram(tokens),
    request_prefill_kv_computed_tokens: histogram(tokens),
    iteration_tokens_total: histogram([1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]),
    request_params_n: histogram([1, 2, 5, 10, 20]),
    request_num_preemptions: histogram([1, 2, 3, 4, 5, 10, 20]),
    time_to_first_token_seconds: histogram(SECONDS_TTFT),
    inter_token_latency_seconds: histogram(SECONDS_TOKEN),
    request_time_per_output_token_seconds: histogram(SECONDS_TOKEN),
    e2e_request_latency_seconds: histogram(SECONDS_LONG),
    request_queue_time_seconds: histogram(SECONDS_LONG),
    request_inference_time_seconds: histogram(SECONDS_LONG),
    request_prefill_time_seconds: histogram(SECONDS_LONG),
    request_decode_time_seconds: histogram(SECONDS_LONG),
    nixl_xfer_time_seconds: histogram(SECONDS_TRANSFER),
    nixl_post_time_seconds: histogram([0.001, ...SECONDS_TRANSFER]),
    nixl_bytes_transferred: histogram(Array.from({ length: 12 }, (_, power) => 2048 * 4 ** power)),
    nixl_num_descriptors: histogram([10, 20, 30, 50, 75, 100, 200, 400, 1000, 2000, 4000, 10_000, 20_000, 50_000]),
  };
}

/** 1, 2, 5, 10, ... up to `limit`: vLLM's buckets for token counts. */
function bucketsUpTo(limit: number): number[] {
  const bounds: number[] = [];
  for (let power = 1; power <= limit; power *= 10) bounds.push(power, 2 * power, 5 * power);
  return bounds.filter((bound) => bound <= limit);
}

export class EngineMetrics {
  readonly #modelName: string;
  readonly #kv: KvModel;
  readonly #withNixl: boolean;
  readonly #createdSeconds = Date.now() / 1000;
  readonly #histograms: ReturnType<typeof histograms>;

  running = 0;
  waiting = 0;
  /** Sequences that wait for a KV transfer rather than for capacity. */
  deferred = 0;
  kvUsageRatio = 0;

  prefixQueries = 0;
  prefixHits = 0;
  externalQueries = 0;
  externalHits = 0;
  preemptions = 0;
  promptTokens = 0;
  generationTokens = 0;
  /** Bytes of streamed answers that connections have taken. No metric of vLLM: for /sim/state. */
  streamedBytes = 0;
  readonly finished: Record<FinishedReason, number> = { stop: 0, length: 0, abort: 0, error: 0, repetition: 0 };

  failedTransfers = 0;
  expiredLeases = 0;
  notificationsAfterExpiry = 0;
  /** Set where KV is transferred. */
  transfers: (() => { readonly stages: KvStages; readonly lateCount: number }) | undefined;

  constructor(modelName: string, kv: KvModel, withNixl: boolean) {
    this.#modelName = modelName;
    this.#kv = kv;
    this.#withNixl = withNixl;
    this.#histograms = histograms(kv.maxLength);
  }

  observe(name: keyof ReturnType<typeof histograms>, value: number): void {
    observe(this.#histograms[name], value);
  }

  arrived({ sampling, choice, choiceCount }: SequenceRequest): void {
    this.observe("request_params_max_tokens", sampling.maxTokens);
    if (choice > 0) return;
    this.observe("request_params_n", choiceCount);
    this.observe("request_max_num_generation_tokens", sampling.maxTokens);
  }

  /** KV of a whole prompt came from another engine; only its last token is computed here. */
  received(promptTokens: number): void {
    this.externalQueries += promptTokens;
    this.externalHits += promptTokens - 1;
  }

  /** @param sequence Its `outputCount` already counts the token. */
  generated(sequence: Sequence, nowMs: number): void {
    this.generationTokens++;
    if (sequence.outputCount > 1) {
      this.observe("inter_token_latency_seconds", (nowMs - sequence.lastTokenMs) / 1000);
    } else {
      this.promptTokens += sequence.request.prompt.length;
      sequence.firstTokenMs = nowMs;
      this.observe("time_to_first_token_seconds", (nowMs - sequence.arrivedMs) / 1000);
    }
    sequence.lastTokenMs = nowMs;
  }

  ended(sequence: Sequence, reason: FinishedReason, nowMs: number): void {
    this.finished[reason]++;
    const { request, arrivedMs, scheduledMs, firstTokenMs, lastTokenMs, outputCount } = sequence;
    if (outputCount === 0) return;
    this.observe("request_prompt_tokens", request.prompt.length);
    this.observe("request_generation_tokens", outputCount);
    this.observe("request_prefill_kv_computed_tokens", request.prompt.length - sequence.cachedTokens);
    this.observe("request_num_preemptions", sequence.preemptions);
    this.observe("e2e_request_latency_seconds", (nowMs - arrivedMs) / 1000);
    this.observe("request_queue_time_seconds", (scheduledMs - arrivedMs) / 1000);
    this.observe("request_prefill_time_seconds", (firstTokenMs - scheduledMs) / 1000);
    this.observe("request_decode_time_seconds", (lastTokenMs - firstTokenMs) / 1000);
    this.observe("request_inference_time_seconds", (lastTokenMs - scheduledMs) / 1000);
    const tpotMs = outputCount > 1 ? (lastTokenMs - firstTokenMs) / (outputCount - 1) : 0;
    this.observe("request_time_per_output_token_seconds", tpotMs / 1000);
  }

  /** Prometheus text. */
  text(): string {
    const base = { model_name: this.#modelName, engine: "0" };
    const values = this.#values(base);
    const groups: HelpTexts[] = [vllm.process, ...(this.#withNixl ? [vllm.nixl] : []), vllm.vllm];
    let text = "";
    for (const [type, helps] of groups.flatMap((group) => Object.entries(group))) {
      for (const [name, help] of Object.entries(helps)) {
        const value = values[name.replace("vllm:", "")] ?? 0;
        const samples = Array.isArray(value) ? value : [[base, value] as const];
        text += familyText({ type, name, help }, samples, this.#createdSeconds);
      }
    }
    return text + this.#transferText();
  }

  #transferText(): string {
    if (this.transfers === undefined) return "";
    const family = (type: string, name: keyof typeof OWN_HELP, samples: readonly Sample[]): string =>
      familyText({ type, name, help: OWN_HELP[name] }, samples, this.#createdSeconds);
    const { stages, lateCount } = this.transfers();
    const held = Object.entries(stages).map(([stage, count]): Sample => [{ stage }, count]);
    return family("gauge", "tandem:kv_held", held) + family("counter", "tandem:kv_late", [[{}, lateCount]]);
  }

  /** By name without `vllm:`. What isn't here is always 0. */
  #values(base: Labels): Readonly<Record<string, number | Histogram | readonly Sample[]>> {
    const { prefixHits, externalHits, waiting, deferred } = this;
    const by = (label: string, counts: Readonly<Record<string, number>>): Sample[] =>
      Object.entries(counts).map(([value, count]) => [{ ...base, [label]: value }, count]);
    const cpu = process.cpuUsage();
    return {
      ...this.#histograms,
      process_resident_memory_bytes: [[{}, process.memoryUsage.rss()]],
      process_start_time_seconds: [[{}, performance.timeOrigin / 1000]],
      process_cpu_seconds: [[{}, (cpu.user + cpu.system) / 1e6]],
      num_requests_running: this.running,
      num_requests_waiting: waiting,
      num_requests_waiting_by_reason: by("reason", { capacity: waiting - deferred, deferred }),
      num_requests_kv_fetch_by_stage: by("stage", { waiting_to_start: 0, in_progress: deferred, completed_waiting: 0 }),
      engine_sleep_state: by("sleep_state", { awake: 1, weights_offloaded: 0, discard_all: 0 }),
      kv_cache_usage_perc: this.kvUsageRatio,
      prefix_cache_queries: this.prefixQueries,
      prefix_cache_hits: prefixHits,
      external_prefix_cache_queries: this.externalQueries,
      external_prefix_cache_hits: externalHits,
      num_preemptions: this.preemptions,
      prompt_tokens: this.promptTokens,
      prompt_tokens_by_source: by("source", {
        local_compute: this.promptTokens - prefixHits - externalHits,
        local_cache_hit: prefixHits,
        external_kv_transfer: externalHits,
      }),
      prompt_tokens_cached: prefixHits + externalHits,
      prompt_tokens_cached_by_source: by("source", {
        device: prefixHits,
        host: 0,
        p2p: externalHits,
        disk: 0,
        external_unspecified: 0,
      }),
      generation_tokens: this.generationTokens,
      request_success: by("finished_reason", this.finished),
      admission_rejections: ["max_num_queued_reqs", "max_num_queued_tokens"].map((reason) => [
        { model_name: this.#modelName, reason },
        0,
      ]),
      nixl_num_failed_transfers: this.failedTransfers,
      nixl_num_kv_expired_reqs: this.expiredLeases,
      nixl_num_notifications_after_expiry: this.notificationsAfterExpiry,
      cache_config_info: [[cacheLabels(this.#kv), 1]],
    };
  }
}

/** By type and name, as in vllm-metrics.json. */
type HelpTexts = Readonly<Record<string, Readonly<Record<string, string>>>>;

/** vLLM 0.32 prints its whole cache configuration as labels; only sizes mean anything here. */
function cacheLabels({ blockCount, blockSize, maxLength, bytesPerToken }: KvModel): Labels {
  const tokens = blockCount * blockSize;
  return {
    ...vllm.cacheConfig,
    engine: "0",
    block_size: String(blockSize),
    effective_attention_block_size: String(blockSize),
    kv_cache_max_concurrency: (tokens / maxLength).toFixed(1),
    kv_cache_memory_bytes: String(tokens * bytesPerToken),
    kv_cache_size_tokens: String(tokens),
    num_gpu_blocks: String(blockCount),
  };
}
