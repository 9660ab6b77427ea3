// `npm run bench -- overload`: what is left of the throughput when there is too little processor and too much load. All of
// Tandem shares one core with busy loops. In one run: first its own maximum there, then 60 % of it, then twice as much.
// An instance that is called dead meanwhile is a fault, because none is.
import { execFileSync, spawn } from "node:child_process";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  defineConfig,
  integer,
  loadConfig,
  milliseconds,
  number,
  StartError,
} from "../../../services/common/config.ts";
import { openAiClient } from "../../client/openai.ts";
import { renderTable } from "../../common/table.ts";
import { startUp } from "../processes.ts";
import { processTree } from "../procfs.ts";
import { reportOf, runLoad, type LoadReport } from "../run-load.ts";
import { formatMs, jsonFile, writeJson } from "./output.ts";

const overloadConfig = defineConfig(
  "bench overload",
  {
    busy: integer("busy", "Busy loops on Tandem's core.", { default: 2, min: 0, max: 64 }),
    core: integer("core", "Tandem's core. This program uses the others.", { default: 0, min: 0, max: 1023 }),
    seconds: integer("seconds", "Length of each phase.", { default: 20, min: 1, max: 3_600, unit: "s" }),
    tokens: integer("tokens", "Length of an answer.", { default: 32, min: 1, unit: "tokens" }),
    prefill: integer("prefill", "Prefill instances.", { default: 2, min: 1 }),
    decode: integer("decode", "Decode instances.", { default: 2, min: 1 }),
    sloTtftMs: milliseconds("slo.ttft_ms", "Longest TTFT that counts for goodput.", { default: 5_000 }),
    partShare: number("part", "Goodput that must be reached at 60 % of the maximum, by the requests sent.", {
      default: 0.95,
      min: 0,
      max: 1,
    }),
    overShare: number("over", "Goodput that must be reached at twice the maximum, by the maximum.", {
      default: 0.8,
      min: 0,
      max: 1,
    }),
    json: jsonFile,
  },
  {
    summary: "Goodput of a system that shares one core with busy loops, up to twice the load that it can serve.",
    usage: "npm run bench -- overload [--busy 2] [--seconds 20]",
  },
);

type Phase = LoadReport & { readonly elapsedS: number };

/** Concurrent streams with which the maximum is looked for. */
const STREAMS = [16, 64, 128, 256];

export async function runOverload(argv: readonly string[]): Promise<void> {
  const config = loadConfig(overloadConfig, { argv, env: process.env });
  const { seconds, sloTtftMs } = config;
  await using up = await startUp(
    ["--engine", "sim", "--prefill", `${config.prefill}`, "--decode", `${config.decode}`],
    { TANDEM_LOG_LEVEL: "info" },
  );
  pin(config.core, processTree(up.pid));
  using _busy = busyLoops(config.busy, config.core);
  const model = (await openAiClient(up.url).models())[0]!.id;
  const shape = { model, rampMs: 500, promptWords: 64, tokens: config.tokens };
  let seed = 0;
  const phase = async (streams: number, rate: number): Promise<Phase> => {
    const began = performance.now();
    const rounds = [];
    // Closed loop: rounds of a few requests a stream, until the time is over.
    do
      rounds.push(
        await runLoad(up.url, {
          ...shape,
          streams,
          rate,
          requests: rate > 0 ? Math.ceil(rate * seconds) : 2 * streams,
          seed: ++seed,
        }),
      );
    while (rate === 0 && performance.now() - began < (seconds * 1000) / STREAMS.length);
    await sleep(1_000);
    const elapsedS = rounds.reduce((sum, { elapsedMs }) => sum + elapsedMs, 0) / 1000;
    return { ...reportOf(rounds, { ttftMs: sloTtftMs }), elapsedS };
  };

  const rows: { name: string; sentPerS: number; report: Phase }[] = [];
  const note = (name: string, sentPerS: number, report: Phase): Phase => {
    rows.push({ name, sentPerS, report });
    return report;
  };
  await phase(16, 0); // Until its code is compiled.
  for (const streams of STREAMS) note(`${streams} streams`, Number.NaN, await phase(streams, 0));
  const maximum = Math.max(...rows.map(({ report }) => report.goodputPerS));
  const part = note("60 %", 0.6 * maximum, await phase(0, 0.6 * maximum));
  const over = note("200 %", 2 * maximum, await phase(0, 2 * maximum));
  const partShare = (part.goodputPerS * part.elapsedS) / part.requests;
  const overShare = over.goodputPerS / maximum;
  const dead = deathsIn(up.run.logDir);

  process.stdout.write(
    `${renderTable(rows, [
      { title: "load", cell: ({ name }) => name },
      { title: "sent/s", align: "right", cell: ({ sentPerS }) => formatMs(sentPerS) },
      { title: "good/s", align: "right", cell: ({ report }) => formatMs(report.goodputPerS) },
      { title: "requests", align: "right", cell: ({ report }) => `${report.requests}` },
      { title: "failed", align: "right", cell: ({ report }) => `${report.failed}` },
      { title: "TTFT p50", align: "right", cell: ({ report }) => formatMs(report.ttft.p50) },
      { title: "TTFT p99", align: "right", cell: ({ report }) => formatMs(report.ttft.p99) },
    ])}\n\n${[
      `maximum ${maximum.toFixed(1)} good answers/s on core ${config.core} beside ${config.busy} busy loops`,
      `at 60 %: ${(100 * partShare).toFixed(1)} % of the requests were good (${100 * config.partShare} % wanted)`,
      `at 200 %: ${(100 * overShare).toFixed(1)} % of the maximum (${100 * config.overShare} % wanted)`,
      `instances that were called dead: ${dead.length}`,
      ...dead.slice(0, 5),
      ...[...new Set(rows.flatMap(({ report }) => report.errors))].slice(0, 6).map((error) => `error: ${error}`),
    ].join("\n")}\n`,
  );
  writeJson(config.json, { scenario: "overload", maximum, partShare, overShare, dead, rows });
  if (partShare < config.partShare || overShare < config.overShare || dead.length > 0) process.exitCode = 1;
}

/** Keeps processes, with all their threads, on one core. @throws StartError without `taskset` */
function pin(core: number, pids: readonly number[]): void {
  try {
    for (const pid of pids) execFileSync("taskset", ["-a", "-c", "-p", `${core}`, `${pid}`], { stdio: "ignore" });
  } catch (cause) {
    throw new StartError("bench overload needs `taskset` (Linux, package util-linux).", { cause });
  }
}

function busyLoops(count: number, core: number): Disposable {
  const loops = Array.from({ length: count }, () =>
    spawn("taskset", ["-c", `${core}`, process.execPath, "-e", "for (;;);"], { stdio: "ignore" }),
  );
  return { [Symbol.dispose]: () => loops.forEach((loop) => loop.kill("SIGKILL")) };
}

/** What the routers said of instances that were there all the time. */
function deathsIn(logDir: string): string[] {
  const files = readdirSync(logDir).filter((name) => name.startsWith("router"));
  const lines = files.flatMap((name) => readFileSync(join(logDir, name), "utf8").split("\n"));
  return lines.filter((line) => /instance is out|instance left/.test(line));
}
