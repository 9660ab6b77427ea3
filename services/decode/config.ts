// The settings of a decode instance.
import { defineConfig, milliseconds, number, section, type Config } from "../common/config.ts";
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
      debtLimitRatio: number(
        "kv.debt_limit_ratio",
        "Share of the engine's KV cache that KV may fill which possibly was sent and will never be claimed. Beyond it the instance asks its routers for a restart of its engine, which they grant to one instance at a time and never to the last one.",
        { default: 0.05, min: 0, max: 1 },
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
