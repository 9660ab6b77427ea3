import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { isAnotherEngine, readBlockSize, readGauges, readKvCache } from "../../services/engine/metrics-text.ts";

describe("an engine's metrics", () => {
  it("are read from what vLLM 0.32 answers", () => {
    const text = readFileSync(new URL("../fixtures/vllm-transcripts/get-metrics-after.http", import.meta.url), "utf8");
    assert.deepEqual(readGauges(text), {
      running: 0,
      waiting: 0,
      deferred: 0,
      kvUsageRatio: 0,
      kvHeld: 0,
      kvLate: 0,
      promptTokens: 1416,
      generationTokens: 1493,
      startedS: 1795354490.51,
    });
    assert.equal(readBlockSize(text), 32);
    assert.deepEqual(readKvCache(text), { tokens: 32_768, bytes: 67_108_864 });
  });

  it("are summed over data-parallel ranks, and not confused with series of longer names", () => {
    const text = [
      "# HELP vllm:num_requests_running x",
      'vllm:num_requests_running{engine="0"} 2.0',
      'vllm:num_requests_running{engine="1"} 3.0 1700000000',
      'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0',
      'vllm:num_requests_waiting_by_reason{engine="0",reason="deferred"} 2.0',
      'vllm:num_requests_waiting_by_reason{engine="1",reason="deferred"} 1.0',
      'vllm:num_requests_waiting{engine="0"} 1',
      'vllm:kv_cache_usage_perc{engine="0"} 0.25',
      'vllm:kv_cache_usage_perc{engine="1"} 0.5',
      "vllm:prompt_tokens_total 7e3",
      'tandem:kv_held{stage="filling"} 1.0',
      'tandem:kv_held{stage="ready"} 2.0',
      'tandem:kv_held{stage="claimed"} 5.0',
      "tandem:kv_late_total 4.0",
    ].join("\n");
    assert.deepEqual(readGauges(text), {
      running: 5,
      waiting: 1,
      deferred: 3,
      kvUsageRatio: 0.5,
      kvHeld: 3,
      kvLate: 4,
      promptTokens: 7000,
      generationTokens: 0,
      startedS: 0,
    });
    assert.equal(readBlockSize(text), 0);
    assert.deepEqual(readKvCache(text), { tokens: 0, bytes: 0 });
  });

  it("give the size of the KV cache by its blocks where vLLM 0.23 says no more", () => {
    const text =
      'vllm:cache_config_info{block_size="16",cache_dtype="auto",kv_cache_memory_bytes="None",num_gpu_blocks="1000"} 1.0';
    assert.deepEqual(readKvCache(text), { tokens: 16_000, bytes: 0 });
  });

  it("are those of another engine if a counter fell, or if it started later and has counted nothing", () => {
    const of = (promptTokens: number, generationTokens: number, startedS = 0) => ({
      ...readGauges(""),
      promptTokens,
      generationTokens,
      startedS,
    });
    assert.equal(isAnotherEngine(of(5, 5), of(9, 5)), false);
    assert.equal(isAnotherEngine(of(5, 5), of(9, 4)), true);
    assert.equal(isAnotherEngine(of(5, 5), of(0, 6)), true);
    assert.equal(isAnotherEngine(of(0, 0, 1_000), of(0, 0, 1_002)), true);
    assert.equal(isAnotherEngine(of(5, 5, 1_000), of(5, 5, 1_002)), false, "another API server of the same engine");
    assert.equal(isAnotherEngine(of(0, 0), of(0, 0, 1_002)), false);
  });
});
