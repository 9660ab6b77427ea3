import assert from "node:assert/strict";
import { complete, startFast } from "./client.ts";
import { recordedResponse } from "./transcripts.ts";

async function metricsOf(engine: { readonly url: string }): Promise<string> {
  return (await fetch(`${engine.url}/metrics`)).text();
}

/** Every line of vLLM's own series, with numbers taken away. */
function series(text: string): Set<string> {
  return new Set(
    text
      .split("\n")
      .filter((line) => /^(# (HELP|TYPE) )?vllm:/.test(line))
      .map((line) =>
        line.startsWith("#")
          ? line
          : line.replace(/ [^ ]+$/, "").replace(/="[\d.]+"(?=[,}])/g, (label) => (label === '="0"' ? label : '="n"')),
      ),
  );
}

function value(text: string, name: string): number {
  const line = text.split("\n").find((one) => one.startsWith(`${name} `) || one.startsWith(`${name}{`));
  return Number(line?.split(" ").at(-1));
}

describe("/metrics", () => {
  it("has every series of vLLM 0.32, with its help, labels and buckets", async () => {
    await using engine = await startFast({ maxLength: 512, kvBlockSize: 32 });
    const ours = series(await metricsOf(engine));
    assert.deepEqual(
      [...series(recordedResponse("get-metrics-after").chunks[0]!)].filter((line) => !ours.has(line)),
      [],
    );
  });

  it("has NIXL's series where the connector is nixl", async () => {
    await using engine = await startFast({ role: "decode", connector: "nixl", maxLength: 512, kvBlockSize: 32 });
    const ours = series(await metricsOf(engine));
    assert.deepEqual(
      [...series(recordedResponse("pd-decode-metrics").chunks[0]!)].filter((line) => !ours.has(line)),
      [],
    );
  });

  it("counts tokens, endings and prefix cache hits", async () => {
    await using engine = await startFast({ kvBlockSize: 16 });
    const prompt = "the sea ".repeat(50);
    await complete(engine, prompt, { max_tokens: 4 });
    await complete(engine, prompt, { max_tokens: 4 });
    const text = await metricsOf(engine);
    assert.equal(value(text, "vllm:generation_tokens_total"), 8);
    assert.equal(value(text, 'vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"}'), 2);
    assert.equal(value(text, "vllm:inter_token_latency_seconds_count"), 6);
    assert.ok(value(text, "vllm:prefix_cache_hits_total") >= 80);
    assert.equal(value(text, "vllm:num_requests_running"), 0);
    assert.equal(value(text, "vllm:kv_cache_usage_perc"), 0);
  });
});
