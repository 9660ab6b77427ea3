// Settings of `npm run chaos`.
import {
  boolean,
  choice,
  defineConfig,
  integer,
  milliseconds,
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
    seed: integer("seed", "Of the schedule, the requests and their clients. The same seed gives the same schedule.", {
      default: 1,
      min: 0,
    }),
    minutes: number("minutes", "How long faults are injected.", { default: 1, min: 0.05, max: 1_440, unit: "min" }),
    engineKind: choice(
      "engine.kind",
      "What computes. Every answer is compared with that of the same engine alone.",
      OWN_ENGINE_KINDS,
      { default: "sim", alias: "engine" },
    ),
    streams: integer("streams", "Requests that run at a time.", { default: 64, min: 1, max: 4_096 }),
    routers: integer("routers", "Routers.", { default: 2, min: 1, max: 8 }),
    prefill: integer("prefill", "Prefill instances.", { default: 2, min: 2, max: 16 }),
    decode: integer("decode", "Decode instances.", { default: 3, min: 2, max: 16 }),
    decodeMs: number("decode_ms", "Time of the sim for one token.", { default: 25, min: 0, unit: "ms" }),
    tokens: integer("tokens", "Longest answer.", { default: 120, min: 4, max: 8_000, unit: "tokens" }),
    stallMs: milliseconds("stall_ms", "What routers and instances take for a stall.", {
      default: 2_000,
      max: Infinity,
      min: 500,
    }),
    hangMs: milliseconds("hang_ms", "A request without an end after so long is hung.", {
      default: 40_000,
      max: Infinity,
      min: 1_000,
    }),
    slackMs: milliseconds("slack_ms", "Added to every bound in time, for a machine that is busy with other things.", {
      default: 1_000,
      max: Infinity,
      min: 0,
    }),
    upstream: boolean(
      "upstream",
      "Engines fail as vLLM 0.23 with P2P NCCL: missing KV hangs them for ever, an unpaired request kills them.",
      { default: true },
    ),
    kinds: list("kinds", `Only these faults. Left out: all of ${[...HARD_FAULTS, ...SOFT_FAULTS].join(", ")}.`),
    scenes: boolean("scenes", "Also drain an instance under load, and ask instances that answer nothing.", {
      default: true,
    }),
    drainStreams: integer("drain.streams", "Streams while an instance is drained.", {
      default: 300,
      min: 1,
      max: 10_000,
    }),
    keep: boolean("keep", "Keep the folder of logs also where nothing was found.", { default: false }),
    plan: boolean("plan", "Print the schedule and do nothing.", { default: false }),
    json: text("json", "File to write the report to.", { optional: true }),
    events: text(
      "events",
      "File to write the log of faults to, one JSON object a line. Left out: in the folder of logs.",
      { optional: true },
    ),
  },
  {
    summary:
      "Kills, freezes, partitions, drains and restarts a whole deployment under load, and checks what Tandem promises. Linux only. " +
      "Exit code 1 names what broke a promise.",
    usage: "npm run chaos -- [--seed 1] [--minutes 1] [--engine sim|embedded]",
  },
);

export type ChaosConfig = Config<typeof chaosConfig.schema>;
