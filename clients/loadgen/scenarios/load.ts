// `npm run bench -- load`: one load against any OpenAI server, with SLOs.
import {
  defineConfig,
  integer,
  list,
  loadConfig,
  number,
  secret,
  StartError,
  text,
} from "../../../services/common/config.ts";
import { openAiClient } from "../../client/openai.ts";
import { renderTable } from "../../common/table.ts";
import { cpuMs } from "../procfs.ts";
import { reportOf, runLoad, type LoadReport } from "../run-load.ts";
import { formatMs, writeJson } from "./output.ts";

export const loadScenarioConfig = defineConfig(
  "bench load",
  {
    url: text({ default: "http://127.0.0.1:3000", doc: "The server." }),
    model: text({ optional: true, env: ["MODEL_ID"], doc: "Left out: the first that the server lists." }),
    api_key: secret({ alias: "api-key", env: ["OPENAI_API_KEY"], doc: "Key to send." }),
    requests: integer({ default: 256, min: 1, max: 10_000_000, doc: "How many." }),
    streams: integer({ default: 32, min: 1, max: 65_536, doc: "Streams at a time, where no rate is given." }),
    rate: number({
      default: 0,
      min: 0,
      unit: "requests/s",
      doc: "Poisson arrivals at this rate, however many run. 0: off.",
    }),
    ramp_ms: integer({ default: 0, min: 0, unit: "ms", doc: "The streams start within this time." }),
    tokens: integer({ default: 128, min: 1, max: 1_000_000, unit: "tokens", doc: "Length of an answer." }),
    "prompt.words": integer({ default: 64, min: 1, max: 1_000_000, unit: "words", doc: "Length of a prompt." }),
    "slo.ttft_ms": number({
      optional: true,
      min: 0,
      unit: "ms",
      alias: "slo-ttft",
      doc: "Longest TTFT that counts for goodput.",
    }),
    "slo.tpot_ms": number({
      optional: true,
      min: 0,
      unit: "ms",
      alias: "slo-tpot",
      doc: "Longest TPOT that counts for goodput.",
    }),
    pid: list({ doc: "NAME=PID of a process whose CPU per 1,000 chunks is reported. Repeatable." }),
    seed: integer({ default: 1, min: 0, doc: "Of prompts and arrivals." }),
    json: text({ optional: true, doc: "File to write all figures to." }),
  },
  {
    summary: "Loads any OpenAI server: TTFT, ITL, TPOT, goodput, CPU.",
    usage: "npm run bench -- load --url URL [--rate 20] [--slo-ttft 200] [--slo-tpot 30]",
  },
);

export async function runLoadScenario(argv: readonly string[]): Promise<void> {
  const config = loadConfig(loadScenarioConfig, { argv, env: process.env });
  const workload = {
    model: config.model ?? (await firstModel(config.url, config.api_key)),
    promptWords: config["prompt.words"],
    outputTokens: config.tokens,
    seed: config.seed,
  };
  const pids = config.pid.map((written) => ({ name: written.split("=")[0]!, pid: Number(written.split("=")[1]) }));
  const before = pids.map(({ pid }) => cpuMs(pid));
  const shape = { requests: config.requests, streams: config.streams, ratePerS: config.rate, rampMs: config.ramp_ms };
  const result = await runLoad(config.url, config.api_key, workload, shape);
  const report = reportOf([result], { ttftMs: config["slo.ttft_ms"], tpotMs: config["slo.tpot_ms"] });
  const processes = pids.map(({ name, pid }, index) => ({
    name,
    cpuMsPer1000Chunks: ((cpuMs(pid) - before[index]!) * 1000) / report.chunks,
  }));
  process.stdout.write(render(report, processes));
  const { api_key: _, ...settings } = config;
  writeJson(config.json, { scenario: "load", settings, report, processes });
  if (report.failed > 0) process.exitCode = 1;
}

async function firstModel(url: string, apiKey: string): Promise<string> {
  const models = await openAiClient(url, apiKey)
    .models()
    .catch((error: Error) => {
      throw new StartError(error.message, { cause: error });
    });
  if (models[0] === undefined) throw new StartError(`${url} serves no model now.`);
  return models[0].id;
}

function render(report: LoadReport, processes: readonly { name: string; cpuMsPer1000Chunks: number }[]): string {
  const rows = [
    { name: "TTFT", summary: report.ttft },
    { name: "ITL", summary: report.itl },
    { name: "TPOT", summary: report.tpot },
    { name: "end to end", summary: report.endToEnd },
  ];
  return `${[
    renderTable(rows, [
      { title: "ms", cell: (row) => row.name },
      ...(["mean", "p50", "p95", "p99", "max"] as const).map((key) => ({
        title: key,
        align: "right" as const,
        cell: (row: (typeof rows)[number]) => formatMs(row.summary[key]),
      })),
    ]),
    "",
    `requests ${report.requests}, failed ${report.failed}; ${report.requestsPerS.toFixed(1)} requests/s, ${report.tokensPerS.toFixed(0)} tokens/s, goodput ${report.goodputPerS.toFixed(1)} requests/s`,
    ...processes.map((row) => `${row.name}: ${formatMs(row.cpuMsPer1000Chunks)} ms CPU per 1,000 chunks`),
    ...report.errors.map((error) => `error: ${error}`),
  ].join("\n")}\n`;
}
