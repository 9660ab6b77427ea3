// The settings of a decode instance.
import { defineConfig, integer, type Config } from "../common/config.ts";
import { instanceSettings } from "../instance/config.ts";

export const decodeConfig = defineConfig(
  "decode",
  {
    ...instanceSettings("decode"),
    "reservation.hold_ms": integer({
      default: 30_000,
      min: 10,
      max: 3_600_000,
      unit: "ms",
      doc: "How long a KV slot is held for a leg whose prefill has not ended.",
    }),
    "settle.timeout_ms": integer({
      default: 60_000,
      min: 100,
      unit: "ms",
      doc: "How long to wait for the outcome of a prefill whose router was lost, before its KV counts as lost.",
    }),
  },
  { summary: "One decode instance: takes a KV cache and writes the answer on its engine." },
);

export type DecodeConfig = Config<typeof decodeConfig.schema>;
