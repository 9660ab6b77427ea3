// Settings of `npm run chaos`.
import {
  boolean,
  defineConfig,
  integer,
  milliseconds,
  list,
  number,
  text,
  type Config,
} from "../../services/common/config.ts";
import { FLEET_NAMES } from "./fleets.ts";
import { FAULT_NAMES } from "./schedule.ts";

export const chaosConfig = defineConfig(
  "chaos",
  {
    seed: integer(
      "seed",
      "Seed of the schedule, the requests and their clients: the same seed gives the same schedule. Left out: the time in seconds.",
      { optional: true, min: 0 },
    ),
    runs: integer("runs", "Runs one after the other, each with the seed after the last one's.", {
      default: 1,
      min: 1,
      max: 10_000,
      unit: "runs",
    }),
    minutes: number("minutes", "How long faults are injected.", { default: 1, min: 0.05, max: 1_440, unit: "min" }),
    fleets: list(
      "fleet",
      `Engines, connector, and who starts the engines: ${FLEET_NAMES.join(", ")}, or all. With several, the runs take turns. Left out: sim.`,
    ),
    streams: integer(
      "streams",
      "Requests that run at the same time. Left out: 64, and 8 where the embedded engine computes the answers, which would fill two cores.",
      { optional: true, min: 1, max: 4_096 },
    ),
    routers: integer("routers", "Routers.", { default: 2, min: 1, max: 8 }),
    prefill: integer("prefill", "Number of prefill instances.", { default: 2, min: 2, max: 16 }),
    decode: integer("decode", "Number of decode instances.", { default: 3, min: 2, max: 16 }),
    decodeMs: number("decode_ms", "Time that the sim takes for one token.", { default: 25, min: 0, unit: "ms" }),
    tokens: integer("tokens", "Longest answer.", { default: 120, min: 4, max: 8_000, unit: "tokens" }),
    routerFlags: list("router.flag", "A flag for every router, to run with other settings than ship. May be repeated."),
    instanceFlags: list("instance.flag", "A flag for every instance. May be repeated."),
    engineFlags: list("engine.flag", "A flag for every engine. May be repeated."),
    hangMs: milliseconds("hang_ms", "A request without an end after this long is hung.", {
      default: 60_000,
      max: Infinity,
      min: 1_000,
    }),
    slackMs: milliseconds("slack_ms", "Added to every time limit, for a machine that is busy with other work.", {
      default: 1_000,
      max: Infinity,
      min: 0,
    }),
    kinds: list("kinds", `Faults to inject. Left out: all of ${FAULT_NAMES.join(", ")}.`),
    scenes: boolean(
      "scenes",
      "Also drain an instance under load, and send requests to instances that answer nothing.",
      { default: true },
    ),
    drainStreams: integer("drain.streams", "Streams that run while an instance is drained.", {
      default: 300,
      min: 1,
      max: 10_000,
    }),
    consul: text(
      "consul",
      "Consul program: everything registers in an agent of its own, which is killed and forgets everything. Left out: no Consul.",
      { optional: true },
    ),
    keep: boolean("keep", "Keep the folder of logs even if no violation was found.", { default: false }),
    plan: boolean("plan", "Print the schedule and exit.", { default: false }),
    json: text("json", "File to write the report to.", { optional: true }),
    events: text(
      "events",
      "File to write the log of faults to, one JSON object per line. Left out: a file in the folder of logs.",
      { optional: true },
    ),
  },
  {
    summary:
      "Kills, freezes, partitions, drains and restarts a whole deployment under load, and checks what Tandem promises. Linux only. " +
      "Everything runs with the settings that ship. Exits with 1 and names every broken promise, or with 2 if the machine was too slow to judge.",
    usage: "npm run chaos -- [--seed 1] [--minutes 1] [--runs 10] [--fleet all]",
  },
);

export type ChaosConfig = Config<typeof chaosConfig.schema>;
