// The engine's counters and histograms under vLLM's names. Only engine steps set the gauges,
// so on a wedged engine they freeze, as vLLM's do.
import { bucketsUpTo, histogram, metricsText, type Family, type Histogram, type Labels } from "./prometheus-text.ts";

export type FinishedReason = "stop" | "length" | "abort" | "error" | "repetition";

const SECONDS_LONG = [0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680];
const SECONDS_TTFT = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
];
const SECONDS_TOKEN = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80];
const SECONDS_TRANSFER = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 5];

export interface CacheConfig {
  readonly blockSize: number;
  readonly blockCount: number;
  readonly maxLength: number;
  readonly bytesPerToken: number;
}

export class EngineMetrics {
  readonly #modelName: string;
  readonly #cache: CacheConfig;
  readonly #createdSeconds = Date.now() / 1000;
  readonly #withNixl: boolean;

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
  readonly finished: Record<FinishedReason, number> = { stop: 0, length: 0, abort: 0, error: 0, repetition: 0 };

  readonly requestPromptTokens: Histogram;
  readonly requestGenerationTokens: Histogram;
  readonly maxGenerationTokens: Histogram;
  readonly paramsMaxTokens: Histogram;
  readonly prefillComputedTokens: Histogram;
  readonly iterationTokens = histogram([1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]);
  readonly paramsN = histogram([1, 2, 5, 10, 20]);
  readonly ttftSeconds = histogram(SECONDS_TTFT);
  readonly itlSeconds = histogram(SECONDS_TOKEN);
  readonly tpotSeconds = histogram(SECONDS_TOKEN);
  readonly e2eSeconds = histogram(SECONDS_LONG);
  readonly queueSeconds = histogram(SECONDS_LONG);
  readonly inferenceSeconds = histogram(SECONDS_LONG);
  readonly prefillSeconds = histogram(SECONDS_LONG);
  readonly decodeSeconds = histogram(SECONDS_LONG);
  readonly requestPreemptions = histogram([1, 2, 3, 4, 5, 10, 20]);

  readonly transferSeconds = histogram(SECONDS_TRANSFER);
  readonly postSeconds = histogram([0.001, ...SECONDS_TRANSFER]);
  readonly transferBytes = histogram(Array.from({ length: 12 }, (_, power) => 2048 * 4 ** power));
  readonly transferDescriptors = histogram([
    10, 20, 30, 50, 75, 100, 200, 400, 1000, 2000, 4000, 10_000, 20_000, 50_000,
  ]);
  failedTransfers = 0;
  expiredLeases = 0;
  notificationsAfterExpiry = 0;

  constructor(modelName: string, cache: CacheConfig, withNixl: boolean) {
    this.#modelName = modelName;
    this.#cache = cache;
    this.#withNixl = withNixl;
    const buckets = bucketsUpTo(cache.maxLength);
    this.requestPromptTokens = histogram(buckets);
    this.requestGenerationTokens = histogram(buckets);
    this.maxGenerationTokens = histogram(buckets);
    this.paramsMaxTokens = histogram(buckets);
    this.prefillComputedTokens = histogram(buckets);
  }

  text(): string {
    return metricsText(
      [...processFamilies(), ...(this.#withNixl ? this.#nixlFamilies() : []), ...this.#engineFamilies()],
      this.#createdSeconds,
    );
  }

  #engineFamilies(): Family[] {
    const model = { model_name: this.#modelName };
    const base = { ...model, engine: "0" };
    const gauge = (name: string, help: string, ...samples: [Labels, number][]): Family => ({
      type: "gauge",
      name: `vllm:${name}`,
      help,
      samples,
    });
    const counter = (name: string, help: string, ...samples: [Labels, number][]): Family => ({
      type: "counter",
      name: `vllm:${name}`,
      help,
      samples,
    });
    const spread = (name: string, help: string, series: Histogram): Family => ({
      type: "histogram",
      name: `vllm:${name}`,
      help,
      samples: [[base, series]],
    });
    const by = (label: string, values: Readonly<Record<string, number>>): [Labels, number][] =>
      Object.entries(values).map(([value, count]) => [{ ...base, [label]: value }, count]);
    const computed = this.promptTokens - this.prefixHits - this.externalHits;
    return [
      counter(
        "estimated_flops_per_gpu",
        "Estimated number of floating point operations per GPU (for Model Flops Utilization calculations).",
        [base, 0],
      ),
      counter(
        "estimated_read_bytes_per_gpu",
        "Estimated number of bytes read from memory per GPU (for Model Flops Utilization calculations).",
        [base, 0],
      ),
      counter(
        "estimated_write_bytes_per_gpu",
        "Estimated number of bytes written to memory per GPU (for Model Flops Utilization calculations).",
        [base, 0],
      ),
      gauge("num_requests_running", "Number of requests in model execution batches.", [base, this.running]),
      gauge("num_requests_waiting", "Number of requests waiting to be processed.", [base, this.waiting]),
      gauge(
        "num_requests_waiting_by_reason",
        "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.",
        ...by("reason", { capacity: this.waiting - this.deferred, deferred: this.deferred }),
      ),
      ...(this.#withNixl
        ? [
            gauge(
              "num_requests_kv_fetch_by_stage",
              "Number of waiting requests by async KV load stage. Stage labels: 'waiting_to_start' = needs an async KV load that has not started; 'in_progress' = load started and not yet reported finished; 'completed_waiting' = load finished, request not running yet.",
              ...by("stage", { waiting_to_start: 0, in_progress: this.deferred, completed_waiting: 0 }),
            ),
          ]
        : []),
      gauge(
        "engine_sleep_state",
        "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
        ...by("sleep_state", { awake: 1, weights_offloaded: 0, discard_all: 0 }),
      ),
      gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", [base, this.kvUsageRatio]),
      counter("prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.", [
        base,
        this.prefixQueries,
      ]),
      counter("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", [base, this.prefixHits]),
      counter(
        "external_prefix_cache_queries",
        "External prefix cache queries from KV connector cross-instance cache sharing, in terms of number of queried tokens.",
        [base, this.externalQueries],
      ),
      counter(
        "external_prefix_cache_hits",
        "External prefix cache hits from KV connector cross-instance cache sharing, in terms of number of cached tokens.",
        [base, this.externalHits],
      ),
      counter("mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items.", [base, 0]),
      counter("mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items.", [base, 0]),
      counter("num_preemptions", "Cumulative number of preemption from the engine.", [base, this.preemptions]),
      counter("prompt_tokens", "Number of prefill tokens processed.", [base, this.promptTokens]),
      counter(
        "prompt_tokens_by_source",
        "Number of prompt tokens by source.",
        ...by("source", {
          local_compute: computed,
          local_cache_hit: this.prefixHits,
          external_kv_transfer: this.externalHits,
        }),
      ),
      counter("prompt_tokens_cached", "Number of cached prompt tokens (local + external).", [
        base,
        this.prefixHits + this.externalHits,
      ]),
      counter(
        "prompt_tokens_cached_by_source",
        "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.",
        ...by("source", { device: this.prefixHits, host: 0, p2p: this.externalHits, disk: 0, external_unspecified: 0 }),
      ),
      counter("generation_tokens", "Number of generation tokens processed.", [base, this.generationTokens]),
      counter("request_success", "Count of successfully processed requests.", ...by("finished_reason", this.finished)),
      counter(
        "admission_rejections",
        "Number of admission attempts rejected by a queue limit, by reason.",
        [{ ...model, reason: "max_num_queued_reqs" }, 0],
        [{ ...model, reason: "max_num_queued_tokens" }, 0],
      ),
      spread("request_prompt_tokens", "Number of prefill tokens processed.", this.requestPromptTokens),
      spread("request_generation_tokens", "Number of generation tokens processed.", this.requestGenerationTokens),
      spread("iteration_tokens_total", "Histogram of number of tokens per engine_step.", this.iterationTokens),
      spread(
        "request_max_num_generation_tokens",
        "Histogram of maximum number of requested generation tokens.",
        this.maxGenerationTokens,
      ),
      spread("request_params_n", "Histogram of the n request parameter.", this.paramsN),
      spread("request_params_max_tokens", "Histogram of the max_tokens request parameter.", this.paramsMaxTokens),
      spread("time_to_first_token_seconds", "Histogram of time to first token in seconds.", this.ttftSeconds),
      spread("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", this.itlSeconds),
      spread(
        "request_time_per_output_token_seconds",
        "Histogram of time_per_output_token_seconds per request.",
        this.tpotSeconds,
      ),
      spread("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", this.e2eSeconds),
      spread("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", this.queueSeconds),
      spread(
        "request_inference_time_seconds",
        "Histogram of time spent in RUNNING phase for request.",
        this.inferenceSeconds,
      ),
      spread(
        "request_prefill_time_seconds",
        "Histogram of time spent in PREFILL phase for request.",
        this.prefillSeconds,
      ),
      spread("request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", this.decodeSeconds),
      spread(
        "request_num_preemptions",
        "Histogram of the number of times a request was preempted.",
        this.requestPreemptions,
      ),
      spread(
        "request_prefill_kv_computed_tokens",
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
        this.prefillComputedTokens,
      ),
      gauge("cache_config_info", "Information of the LLMEngine CacheConfig", [
        { ...cacheLabels(this.#cache), engine: "0" },
        1,
      ]),
    ];
  }

  #nixlFamilies(): Family[] {
    const base = { model_name: this.#modelName, engine: "0" };
    const counter = (name: string, help: string, value: number): Family => ({
      type: "counter",
      name: `vllm:nixl_${name}`,
      help,
      samples: [[base, value]],
    });
    const spread = (name: string, help: string, series: Histogram): Family => ({
      type: "histogram",
      name: `vllm:nixl_${name}`,
      help,
      samples: [[base, series]],
    });
    return [
      spread("xfer_time_seconds", "Histogram of transfer duration for NIXL KV Cache transfers.", this.transferSeconds),
      spread("post_time_seconds", "Histogram of transfer post time for NIXL KV Cache transfers.", this.postSeconds),
      spread("bytes_transferred", "Histogram of bytes transferred per NIXL KV Cache transfers.", this.transferBytes),
      spread(
        "num_descriptors",
        "Histogram of number of descriptors per NIXL  KV Cache transfers.",
        this.transferDescriptors,
      ),
      counter(
        "num_failed_transfers",
        "Number of failed NIXL KV Cache transfers, including handshake and notification failures. NOTE: KV expiry is tracked separately in vllm:nixl_num_kv_expired_reqs.",
        this.failedTransfers,
      ),
      counter(
        "num_failed_notifications",
        "Number of failed NIXL KV Cache notifications. Retained for compatibility; these failures are also included in vllm:nixl_num_failed_transfers.",
        0,
      ),
      counter(
        "num_kv_expired_reqs",
        "Number of requests that had their KV expire. NOTE: This metric is tracked on the P instance.",
        this.expiredLeases,
      ),
      counter(
        "num_notifications_after_expiry",
        "Number of completion notifications for requests that were no longer tracked, usually because their KV lease expired. The KV blocks may have been reused before the transfer finished. Counted per notification (one per remote rank), not per request.",
        this.notificationsAfterExpiry,
      ),
    ];
  }
}

function processFamilies(): Family[] {
  const cpu = process.cpuUsage();
  return [
    {
      type: "gauge",
      name: "process_resident_memory_bytes",
      help: "Resident memory size in bytes.",
      samples: [[{}, process.memoryUsage.rss()]],
    },
    {
      type: "gauge",
      name: "process_start_time_seconds",
      help: "Start time of the process since unix epoch in seconds.",
      samples: [[{}, performance.timeOrigin / 1000]],
    },
    {
      type: "counter",
      name: "process_cpu_seconds",
      help: "Total user and system CPU time spent in seconds.",
      samples: [[{}, (cpu.user + cpu.system) / 1e6]],
    },
  ];
}

/** vLLM 0.32 prints its whole cache configuration as labels; only sizes mean anything here. */
function cacheLabels(cache: CacheConfig): Labels {
  const tokens = cache.blockCount * cache.blockSize;
  return {
    _block_size_resolved: "True",
    block_size: String(cache.blockSize),
    cache_dtype: "auto",
    cache_hit_alignment_tokens: "None",
    effective_attention_block_size: String(cache.blockSize),
    enable_mamba_shared_prefix_checkpoint: "False",
    enable_prefix_caching: "True",
    gpu_memory_utilization: "0.92",
    hash_block_size: "None",
    is_attention_free: "False",
    kv_cache_dtype_skip_layers: "[]",
    kv_cache_layout: "None",
    kv_cache_max_concurrency: (tokens / cache.maxLength).toFixed(1),
    kv_cache_memory_bytes: String(tokens * cache.bytesPerToken),
    kv_cache_size_tokens: String(tokens),
    kv_offloading_backend: "native",
    kv_offloading_size: "None",
    kv_sharing_fast_prefill: "False",
    mamba_block_size: "None",
    mamba_cache_dtype: "auto",
    mamba_cache_mode: "none",
    mamba_page_size_padded: "None",
    mamba_ssm_cache_dtype: "float32",
    num_cpu_blocks: "None",
    num_gpu_blocks: String(cache.blockCount),
    num_gpu_blocks_override: "None",
    prefix_cache_retention_interval: "0",
    prefix_caching_hash_algo: "sha256",
    prefix_match_unit: "None",
    replayssm_buffer_len: "16",
    skip_page_size_padded: "None",
    sliding_window: "None",
    swa_bounded_replay: "True",
    use_kda_recoverssm: "False",
    use_replayssm: "False",
    user_specified_block_size: "True",
  };
}
