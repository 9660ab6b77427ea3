// The settings of a prefill instance.
import { defineConfig, integer, milliseconds, section, type Config } from "../common/config.ts";
import { instanceSections, REMOVED_INSTANCE_KEYS } from "../instance/config.ts";

export const prefillConfig = defineConfig(
  "prefill",
  {
    ...instanceSections("prefill"),
    outcomes: section("Outcomes", {
      keepMs: milliseconds(
        "outcome.keep_ms",
        "How long the outcome of an ended leg is kept for a decode instance that lost its router.",
        { default: 600_000, min: 1_000, max: 86_400_000 },
      ),
      limit: integer("outcome.limit", "Limit on kept outcomes. Beyond it the oldest are dropped.", {
        default: 65_536,
        min: 1,
        unit: "legs",
      }),
    }),
  },
  {
    summary: "One prefill instance: computes prompts on its engine and transfers their KV cache.",
    rest: "engine.flag",
    removed: REMOVED_INSTANCE_KEYS,
  },
);

export type PrefillConfig = Config<typeof prefillConfig.schema>;
