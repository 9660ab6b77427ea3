// The settings of a decode instance.
import { defineConfig, milliseconds, section, type Config } from "../common/config.ts";
import { instanceSections, REMOVED_INSTANCE_KEYS } from "../instance/config.ts";

export const decodeConfig = defineConfig(
  "decode",
  {
    ...instanceSections("decode"),
    settling: section("Reservations and lost routers", {
      holdMs: milliseconds("reservation.hold_ms", "How long a KV slot is held for a leg whose prefill has not ended.", {
        default: 30_000,
        min: 10,
      }),
      settleTimeoutMs: milliseconds(
        "settle.timeout_ms",
        "How long to wait for the outcome of a prefill whose router was lost, before the KV counts as lost.",
        { default: 60_000, min: 100 },
      ),
    }),
  },
  {
    summary: "One decode instance: receives a KV cache and generates the answer on its engine.",
    rest: "engine.flag",
    removed: REMOVED_INSTANCE_KEYS,
  },
);

export type DecodeConfig = Config<typeof decodeConfig.schema>;
