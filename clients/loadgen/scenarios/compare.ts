// `npm run bench`: what Tandem adds. The same load through `tandem up` and straight to one aggregated engine, by turns
// within one run, so that other work on the machine affects both.
import { boolean, defineConfig, integer, loadConfig, number } from "../../../services/common/config.ts";
import { openAiClient } from "../../client/openai.ts";
import { renderTable } from "../../common/table.ts";
import { cpuMs, pssBytes } from "../procfs.ts";
import { processesOf, startEngine, startUp } from "../processes.ts";
import { loadSettings, reportOf, runLoad, TIMES, type LoadReport, type LoadResult } from "../run-load.ts";
import { compareAnswers, type Comparison } from "../verify.ts";
import { formatMib, formatMs, jsonFile, writeJson } from "./output.ts";

const compareConfig = defineConfig(
  "bench",
  {
    ...loadSettings({ requests: 192, streams: 64, rampMs: 500, tokens: 64, promptWords: 32 }),
    rounds: integer("rounds", "Rounds through Tandem and through the engine alone.", { default: 3, min: 1, max: 100 }),
    decodeMs: number("decode_ms", "Time that the simulated engines take for a token.", {
      default: 25,
      min: 0,
      unit: "ms",
    }),
    prefill: integer("prefill", "Number of prefill instances.", { default: 1, min: 1, max: 64 }),
    decode: integer("decode", "Number of decode instances.", { default: 1, min: 1, max: 64 }),
    json: jsonFile,
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
  /** PSS after the load. */
  readonly processes: readonly { name: string; cpuMsPer1000Chunks: number; pssBytes: number }[];
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
  const load = { ...config, model: (await openAiClient(up.url).models())[0]!.id };

  say("warming up ...");
  const warm = { ...load, seed: config.seed + 1, requests: Math.min(config.requests, config.streams) };
  for (const url of [engine.url, up.url]) await runLoad(url, warm);

  const processes = processesOf(up.run).filter((process_) => !process_.name.endsWith("guardian"));
  const cpu = processes.map(() => 0);
  const rounds = { direct: [] as LoadResult[], tandem: [] as LoadResult[] };
  for (let round = 0; round < config.rounds; round++) {
    // Each goes first in every other round, so that warm-up and wear affect both.
    for (const which of round % 2 === 0 ? (["direct", "tandem"] as const) : (["tandem", "direct"] as const)) {
      const before = processes.map(({ pid }) => cpuMs(pid));
      const result = await runLoad(which === "direct" ? engine.url : up.url, load);
      rounds[which].push(result);
      if (which === "tandem") processes.forEach(({ pid }, index) => (cpu[index]! += cpuMs(pid) - before[index]!));
      say(`round ${round + 1} ${which}: ${(result.elapsedMs / 1000).toFixed(1)} s`);
    }
  }
  const tandem = reportOf(rounds.tandem);
  const result: CompareResult = {
    direct: reportOf(rounds.direct),
    tandem,
    // The same requests in every round: each must equal the reference of the first.
    answers: compareAnswers(
      rounds.tandem.flatMap(({ results }) => results),
      rounds.tandem.flatMap(() => rounds.direct[0]!.results),
    ),
    processes: processes.map(({ pid, name }, index) => ({
      name,
      cpuMsPer1000Chunks: (cpu[index]! * 1000) / tandem.chunks,
      pssBytes: pssBytes(pid),
    })),
  };
  process.stdout.write(render(result, config.streams));
  writeJson(config.json, { scenario: "compare", settings: config.settings.all, ...result });
  if (result.answers.short + result.answers.different + tandem.failed > 0) process.exitCode = 1;
}

function render({ direct, tandem, answers, processes }: CompareResult, streams: number): string {
  const times = TIMES.flatMap(([time, title]) =>
    (["p50", "p95", "p99"] as const).map((share) => ({
      name: `${title} ${share}`,
      direct: direct[time][share],
      tandem: tandem[time][share],
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
