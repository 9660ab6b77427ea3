// The GPU run under load: rates it must hold, then more KV than decode has memory for.
import { eachOf, load, post, randomIds, tally } from "./ask.mjs";
import { PAIR, UP, up } from "./deployments.mjs";
import { step } from "./report.mjs";
import { until } from "./servers.mjs";
import { MODELS } from "./settings.mjs";

export async function loadSteps() {
  const LLAMA = `${MODELS}/llama8b`;
  const big = ["--load-format", "dummy", "--max-model-len", "8192", "--attention-backend", "FLASH_ATTN"];
  for (const [name, decodeFlag] of [
    ["load_piecewise", undefined],
    ["load_eager", "--enforce-eager"],
  ]) {
    await step(name, async () => {
      const server = await up(
        name,
        LLAMA,
        [...UP, ...PAIR, ...(decodeFlag === undefined ? [] : [`--engine.flag=decode:${decodeFlag}`])],
        big,
      );
      try {
        const rates = [];
        for (const rate of [2, 4, 8])
          rates.push(await load(server.url, "m", { rate, count: rate * 15, promptTokens: 2_000, maxTokens: 150 }));
        // More KV than decode's buffer on the GPU and its pool hold together, all at once: refused, answered or found and
        // started again, but never an engine that stands still.
        const burst = await eachOf(
          Array.from({ length: 96 }, (_, index) => randomIds(20_000 + index, 2_000)),
          96,
          async (prompt) => (await post(server.url, "/v1/completions", { model: "m", prompt, max_tokens: 50 })).status,
        );
        const burstMs = performance.now();
        await until(
          "it serves",
          async () =>
            (await post(server.url, "/v1/completions", { model: "m", prompt: "hello", max_tokens: 2 })).status === 200,
          300_000,
          server,
        );
        return {
          ok: rates.every(({ failed }) => failed === 0),
          rates,
          burst: { statuses: tally(burst), servesAfterMs: Math.round(performance.now() - burstMs) },
        };
      } finally {
        await server.stop();
      }
    });
  }
}
