// Settings of `npm run chaos`.
import {
  boolean,
  choice,
  defineConfig,
  integer,
  list,
  number,
  text,
  type Config,
} from "../../services/common/config.ts";
import { OWN_ENGINE_KINDS } from "../../services/engine/engine.ts";
import { HARD_FAULTS, SOFT_FAULTS } from "./schedule.ts";

export const chaosConfig = defineConfig(
  "chaos",
  {
    seed: integer({
      default: 1,
      min: 0,
      doc: "Of the schedule, the requests and their clients. The same seed gives the same schedule.",
    }),
    minutes: number({ default: 1, min: 0.05, max: 1_440, unit: "min", doc: "How long faults are injected." }),
    "engine.kind": choice(OWN_ENGINE_KINDS, {
      default: "sim",
      alias: "engine",
      doc: "What computes. Every answer is compared with that of the same engine alone.",
    }),
    streams: integer({ default: 64, min: 1, max: 4_096, doc: "Requests that run at a time." }),
    routers: integer({ default: 2, min: 1, max: 8, doc: "Routers." }),
    prefill: integer({ default: 2, min: 2, max: 16, doc: "Prefill instances." }),
    decode: integer({ default: 3, min: 2, max: 16, doc: "Decode instances." }),
    decode_ms: number({ default: 25, min: 0, unit: "ms", doc: "Time of the sim for one token." }),
    tokens: integer({ default: 120, min: 4, max: 8_000, unit: "tokens", doc: "Longest answer." }),
    stall_ms: integer({ default: 2_000, min: 500, unit: "ms", doc: "What routers and instances take for a stall." }),
    hang_ms: integer({
      default: 40_000,
      min: 1_000,
      unit: "ms",
      doc: "A request without an end after so long is hung.",
    }),
    slack_ms: integer({
      default: 1_000,
      min: 0,
      unit: "ms",
      doc: "Added to every bound in time, for a machine that is busy with other things.",
    }),
    upstream: boolean({
      default: true,
      doc: "Engines fail as vLLM 0.23 with P2P NCCL: missing KV hangs them for ever, an unpaired request kills them.",
    }),
    kinds: list({ doc: `Only these faults. Left out: all of ${[...HARD_FAULTS, ...SOFT_FAULTS].join(", ")}.` }),
    scenes: boolean({
      default: true,
      doc: "Also drain an instance under load, and ask instances that answer nothing.",
    }),
    "drain.streams": integer({ default: 300, min: 1, max: 10_000, doc: "Streams while an instance is drained." }),
    keep: boolean({ default: false, doc: "Keep the folder of logs also where nothing was found." }),
    plan: boolean({ default: false, doc: "Print the schedule and do nothing." }),
    json: text({ optional: true, doc: "File to write the report to." }),
    events: text({
      optional: true,
      doc: "File to write the log of faults to, one JSON object a line. Left out: in the folder of logs.",
    }),
  },
  {
    summary:
      "Kills, freezes, partitions, drains and restarts a whole deployment under load, and checks what Tandem promises. Linux only. " +
      "Exit code 1 names what broke a promise.",
    usage: "npm run chaos -- [--seed 1] [--minutes 1] [--engine sim|embedded]",
  },
);

export type ChaosConfig = Config<typeof chaosConfig.schema>;
