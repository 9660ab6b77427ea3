// `npm run bench -- load`: one load against any OpenAI server, with SLOs.
import {
  defineConfig,
  integer,
  milliseconds,
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

const loadScenarioConfig = defineConfig(
  "bench load",
  {
    url: text("url", "URL of the server.", { default: "http://127.0.0.1:3000" }),
    model: text("model", "Model to request. Left out: the first that the server lists.", {
      optional: true,
      env: ["MODEL_ID"],
    }),
    apiKey: secret("api_key", "API key to send.", { env: ["OPENAI_API_KEY"] }),
    requests: integer("requests", "Number of requests.", { default: 256, min: 1, max: 10_000_000 }),
    streams: integer("streams", "Concurrent streams, if no rate is given.", { default: 32, min: 1, max: 65_536 }),
    rate: number("rate", "Poisson arrivals at this rate, regardless of how many requests are running. 0: off.", {
      default: 0,
      min: 0,
      unit: "requests/s",
    }),
    rampMs: milliseconds("ramp_ms", "The streams start within this time.", { default: 0, max: Infinity, min: 0 }),
    tokens: integer("tokens", "Length of an answer.", { default: 128, min: 1, max: 1_000_000, unit: "tokens" }),
    promptWords: integer("prompt.words", "Length of a prompt.", { default: 64, min: 1, max: 1_000_000, unit: "words" }),
    sloTtftMs: number("slo.ttft_ms", "Longest TTFT that counts for goodput.", {
      optional: true,
      min: 0,
      unit: "ms",
      alias: "slo-ttft",
    }),
    sloTpotMs: number("slo.tpot_ms", "Longest TPOT that counts for goodput.", {
      optional: true,
      min: 0,
      unit: "ms",
      alias: "slo-tpot",
    }),
    pid: list("pid", "NAME=PID of a process whose CPU per 1,000 chunks is reported. Repeatable."),
    seed: integer("seed", "Seed of prompts and arrivals.", { default: 1, min: 0 }),
    json: text("json", "File to write all figures to.", { optional: true }),
  },
  {
    summary: "Loads any OpenAI server: TTFT, ITL, TPOT, goodput, CPU.",
    usage: "npm run bench -- load --url URL [--rate 20] [--slo-ttft 200] [--slo-tpot 30]",
  },
);

export async function runLoadScenario(argv: readonly string[]): Promise<void> {
  const config = loadConfig(loadScenarioConfig, { argv, env: process.env });
  const workload = {
    model: config.model ?? (await firstModel(config.url, config.apiKey)),
    promptWords: config.promptWords,
    outputTokens: config.tokens,
    seed: config.seed,
  };
  const pids = config.pid.map((written) => ({ name: written.split("=")[0]!, pid: Number(written.split("=")[1]) }));
  const before = pids.map(({ pid }) => cpuMs(pid));
  const shape = { requests: config.requests, streams: config.streams, ratePerS: config.rate, rampMs: config.rampMs };
  const result = await runLoad(config.url, config.apiKey, workload, shape);
  const report = reportOf([result], { ttftMs: config.sloTtftMs, tpotMs: config.sloTpotMs });
  const processes = pids.map(({ name, pid }, index) => ({
    name,
    cpuMsPer1000Chunks: ((cpuMs(pid) - before[index]!) * 1000) / report.chunks,
  }));
  process.stdout.write(render(report, processes));
  writeJson(config.json, { scenario: "load", settings: config.settings.all, report, processes });
  if (report.failed > 0) process.exitCode = 1;
}

async function firstModel(url: string, apiKey: string): Promise<string> {
  const models = await openAiClient(url, apiKey)
    .models()
    .catch((error: Error) => {
      throw new StartError(error.message, { cause: error });
    });
  if (models[0] === undefined) throw new StartError(`${url} serves no model at the moment.`);
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
