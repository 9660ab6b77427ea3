// `npm run bench`: what Tandem adds. The same load through `tandem up` and straight to one aggregated engine, by turns
// within one run, so that other work on the machine affects both.
import {
  boolean,
  defineConfig,
  integer,
  milliseconds,
  loadConfig,
  number,
  text,
} from "../../../services/common/config.ts";
import { openAiClient } from "../../client/openai.ts";
import { renderTable } from "../../common/table.ts";
import { cpuMs, pssBytes } from "../procfs.ts";
import { processesOf, startEngine, startUp } from "../processes.ts";
import { reportOf, runLoad, type LoadReport, type LoadResult } from "../run-load.ts";
import { compareAnswers, type Comparison } from "../verify.ts";
import { formatMib, formatMs, writeJson } from "./output.ts";

const compareConfig = defineConfig(
  "bench",
  {
    streams: integer("streams", "Concurrent streams.", { default: 64, min: 1, max: 4096 }),
    requests: integer("requests", "Requests per round.", { default: 192, min: 1, max: 1_000_000 }),
    rounds: integer("rounds", "Rounds through Tandem and through the engine alone.", { default: 3, min: 1, max: 100 }),
    tokens: integer("tokens", "Length of an answer.", { default: 64, min: 1, max: 100_000, unit: "tokens" }),
    promptWords: integer("prompt.words", "Length of a prompt.", { default: 32, min: 1, max: 100_000, unit: "words" }),
    rate: number("rate", "Poisson arrivals at this rate instead of a fixed number of streams. 0: off.", {
      default: 0,
      min: 0,
      unit: "requests/s",
    }),
    rampMs: milliseconds(
      "ramp_ms",
      "The streams of a round start within this time. 0: all at once, which measures a burst.",
      { default: 500, max: Infinity, min: 0 },
    ),
    decodeMs: number("decode_ms", "Time that the simulated engines take for a token.", {
      default: 25,
      min: 0,
      unit: "ms",
    }),
    prefill: integer("prefill", "Number of prefill instances.", { default: 1, min: 1, max: 64 }),
    decode: integer("decode", "Number of decode instances.", { default: 1, min: 1, max: 64 }),
    seed: integer("seed", "Seed of prompts and arrivals.", { default: 1, min: 0 }),
    json: text("json", "File to write all figures to.", { optional: true }),
    quiet: boolean("quiet", "Print no progress on standard error.", { default: false }),
  },
  {
    summary:
      "Compares Tandem with the bare engine: added time, CPU and memory, and checks that every answer is the same.",
    usage: "npm run bench -- [compare] [--streams 64] [--json FILE]",
  },
);

interface CompareResult {
  readonly direct: LoadReport;
  readonly tandem: LoadReport;
  readonly answers: Comparison;
  /** Per process: CPU milliseconds per 1,000 chunks, and PSS in bytes after the load. */
  readonly processes: readonly {
    readonly name: string;
    readonly cpuMsPer1000Chunks: number;
    readonly pssBytes: number;
  }[];
}

export async function runCompare(argv: readonly string[]): Promise<void> {
  const config = loadConfig(compareConfig, { argv, env: process.env });
  const say = (line: string): unknown => (config.quiet ? undefined : process.stderr.write(`${line}\n`));
  const pace = `--sim.decode_ms_per_token=${config.decodeMs}`;
  const slots = Math.max(64, config.streams * 2);
  say("starting tandem up and one engine ...");
  await using engine = await startEngine([pace, `--kv.slots=${slots}`]);
  await using up = await startUp(
    ["--engine", "sim", "--prefill", `${config.prefill}`, "--decode", `${config.decode}`, `--engine.flag=${pace}`],
    { TANDEM_SLOTS: `${slots}` },
  );
  const workload = {
    model: (await openAiClient(up.url).models())[0]!.id,
    promptWords: config.promptWords,
    outputTokens: config.tokens,
    seed: config.seed,
  };
  const shape = { requests: config.requests, streams: config.streams, ratePerS: config.rate, rampMs: config.rampMs };

  say("warming up ...");
  const warm = { ...shape, requests: Math.min(config.requests, config.streams) };
  for (const url of [engine.url, up.url]) await runLoad(url, "", { ...workload, seed: workload.seed + 1 }, warm);

  const processes = processesOf(up.run).filter((process_) => !process_.name.endsWith("guardian"));
  const cpu = new Map(processes.map(({ pid }) => [pid, 0]));
  const rounds = { direct: [] as LoadResult[], tandem: [] as LoadResult[] };
  for (let round = 0; round < config.rounds; round++) {
    // Each goes first in every other round, so that warm-up and wear affect both.
    for (const which of round % 2 === 0 ? (["direct", "tandem"] as const) : (["tandem", "direct"] as const)) {
      const before = processes.map(({ pid }) => cpuMs(pid));
      const result = await runLoad(which === "direct" ? engine.url : up.url, "", workload, shape);
      rounds[which].push(result);
      if (which === "tandem")
        processes.forEach(({ pid }, index) => cpu.set(pid, cpu.get(pid)! + cpuMs(pid) - before[index]!));
      say(`round ${round + 1} ${which}: ${(result.elapsedMs / 1000).toFixed(1)} s`);
    }
  }
  const slo = { ttftMs: undefined, tpotMs: undefined };
  const tandem = reportOf(rounds.tandem, slo);
  const result: CompareResult = {
    direct: reportOf(rounds.direct, slo),
    tandem,
    // The same requests in every round: each must equal the reference of the first.
    answers: compareAnswers(
      rounds.tandem.flatMap((round) => round.results),
      rounds.tandem.flatMap(() => rounds.direct[0]!.results),
    ),
    processes: processes.map(({ pid, name }) => ({
      name,
      cpuMsPer1000Chunks: (cpu.get(pid)! * 1000) / tandem.chunks,
      pssBytes: pssBytes(pid),
    })),
  };
  process.stdout.write(render(result, config.streams));
  writeJson(config.json, { scenario: "compare", settings: config.settings.all, ...result });
  if (result.answers.short + result.answers.different + tandem.failed > 0) process.exitCode = 1;
}

function render({ direct, tandem, answers, processes }: CompareResult, streams: number): string {
  const times = (["ttft", "itl", "tpot", "endToEnd"] as const).flatMap((name) =>
    (["p50", "p95", "p99"] as const).map((share) => ({
      name: `${LABELS[name]} ${share}`,
      direct: direct[name][share],
      tandem: tandem[name][share],
    })),
  );
  const lines = [
    `${streams} streams, ${tandem.requests} requests each way, ${tandem.chunks} chunks through Tandem; milliseconds`,
    "",
    renderTable(times, [
      { title: "", cell: (row) => row.name },
      { title: "engine alone", align: "right", cell: (row) => formatMs(row.direct) },
      { title: "through Tandem", align: "right", cell: (row) => formatMs(row.tandem) },
      { title: "added", align: "right", cell: (row) => formatMs(row.tandem - row.direct) },
    ]),
    "",
    `tokens/s: ${direct.tokensPerS.toFixed(0)} alone, ${tandem.tokensPerS.toFixed(0)} through Tandem`,
    "",
    renderTable(processes, [
      { title: "process", cell: (row) => row.name },
      { title: "CPU ms / 1,000 chunks", align: "right", cell: (row) => formatMs(row.cpuMsPer1000Chunks) },
      { title: "PSS MiB", align: "right", cell: (row) => formatMib(row.pssBytes) },
    ]),
    "",
    `answers compared with the engine's: ${answers.compared}; lost: ${answers.short}; out of order or wrong: ${answers.different}; failed: ${tandem.failed} (alone ${direct.failed})`,
    ...(answers.example === undefined ? [] : [answers.example]),
    ...[...direct.errors, ...tandem.errors].map((error) => `error: ${error}`),
  ];
  return `${lines.join("\n")}\n`;
}

const LABELS = { ttft: "TTFT", itl: "ITL", tpot: "TPOT", endToEnd: "end to end" } as const;
