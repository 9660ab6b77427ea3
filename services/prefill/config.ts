// The settings of a prefill instance.
import { defineConfig, integer, type Config } from "../common/config.ts";
import { instanceSettings } from "../instance/config.ts";

export const prefillConfig = defineConfig(
  "prefill",
  {
    ...instanceSettings("prefill"),
    "outcome.keep_ms": integer({
      default: 600_000,
      min: 1_000,
      unit: "ms",
      doc: "How long the outcome of an ended leg is kept for a decode instance that lost its router.",
    }),
    "outcome.limit": integer({
      default: 65_536,
      min: 1,
      unit: "legs",
      doc: "Outcomes kept at most; beyond it the oldest are forgotten.",
    }),
  },
  { summary: "One prefill instance: reads prompts on its engine and hands their KV cache over." },
);

export type PrefillConfig = Config<typeof prefillConfig.schema>;
