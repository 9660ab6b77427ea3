// The few series of an engine's /metrics that Tandem reads. Names are vLLM's, alike in 0.23 and 0.33, but for two of Tandem's own engines.

export type EngineGauges = Readonly<ReturnType<typeof readGauges>>;

/** Sums over label sets (data-parallel ranks), except the usage ratio, of which the largest counts. */
export function readGauges(text: string) {
  return {
    running: sum(text, "vllm:num_requests_running"),
    waiting: sum(text, "vllm:num_requests_waiting"),
    /** Of them, those that wait for their KV. vLLM says so from 0.23 on. */
    deferred: sum(text, "vllm:num_requests_waiting_by_reason", 'reason="deferred"'),
    /** 0 to 1. */
    kvUsageRatio: Math.max(0, ...values(text, "vllm:kv_cache_usage_perc")),
    /** KV that arrives or waits to be claimed. Only of Tandem's own engines, as the next. */
    kvHeld: sum(text, "tandem:kv_held") - sum(text, "tandem:kv_held", 'stage="claimed"'),
    /** KV turned away because its request had ended. */
    kvLate: sum(text, "tandem:kv_late_total"),
    // Counters since the engine's start. On a wedged engine they stop, as do the gauges.
    promptTokens: sum(text, "vllm:prompt_tokens_total"),
    generationTokens: sum(text, "vllm:generation_tokens_total"),
    /** Unix seconds. 0: not reported. */
    startedS: Math.max(0, ...values(text, "process_start_time_seconds")),
  };
}

/** Whether another engine reports now: counters only fall when an engine starts. */
export function isAnotherEngine(before: EngineGauges, now: EngineGauges): boolean {
  if (now.promptTokens < before.promptTokens || now.generationTokens < before.generationTokens) return true;
  // Several API servers of one vLLM report start times of their own, so these count only if there are no tokens to tell by.
  return now.startedS > before.startedS && before.startedS > 0 && now.promptTokens + now.generationTokens === 0;
}

/** Whether the engine has worked in between. */
export function haveMoved(before: EngineGauges, now: EngineGauges): boolean {
  return now.promptTokens !== before.promptTokens || now.generationTokens !== before.generationTokens;
}

export const NO_GAUGES: EngineGauges = readGauges("");

/** Tokens in a KV block, from the labels of `vllm:cache_config_info`. 0 where the engine doesn't say. */
export function readBlockSize(text: string): number {
  const found = /^vllm:cache_config_info\{[^\n]*\bblock_size="(\d+)"/m.exec(text);
  return found === null ? 0 : Number(found[1]);
}

/**
 * The size of the engine's KV cache, from the labels of `vllm:cache_config_info`. 0 where the engine doesn't say: the
 * bytes are there from vLLM 0.32 on.
 */
export function readKvCache(text: string): { readonly tokens: number; readonly bytes: number } {
  const labels = /^vllm:cache_config_info\{([^\n]*)\}/m.exec(text)?.[1] ?? "";
  const label = (name: string): number => Number(new RegExp(`(?:^|,)${name}="(\\d+)"`).exec(labels)?.[1] ?? 0);
  return {
    tokens: label("kv_cache_size_tokens") || label("num_gpu_blocks") * label("block_size"),
    bytes: label("kv_cache_memory_bytes"),
  };
}

function sum(text: string, name: string, label = ""): number {
  return values(text, name, label).reduce((total, value) => total + value, 0);
}

/** @param label Only of series that have it. */
function values(text: string, name: string, label = ""): number[] {
  const found: number[] = [];
  // A plain search: the text is 100 KB on a busy engine, and a pattern over every line costs 10 times as much.
  for (let at = text.indexOf(name); at !== -1; at = text.indexOf(name, at + name.length)) {
    if (at > 0 && text[at - 1] !== "\n") continue;
    const after = text[at + name.length];
    if (after !== "{" && after !== " ") continue;
    const end = text.indexOf("\n", at);
    const line = text.slice(at + name.length, end === -1 ? text.length : end);
    if (!line.includes(label)) continue;
    // A timestamp may follow.
    const value = Number.parseFloat(line.slice(line.lastIndexOf("}") + 1));
    if (Number.isFinite(value)) found.push(value);
  }
  return found;
}
