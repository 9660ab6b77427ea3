// `npm run bench -- load`: one load against any OpenAI server, with SLOs.
import { defineConfig, list, loadConfig, number, secret, StartError, text } from "../../../services/common/config.ts";
import { openAiClient } from "../../client/openai.ts";
import { renderTable } from "../../common/table.ts";
import { cpuMs } from "../procfs.ts";
import { loadSettings, reportOf, runLoad, TIMES, type LoadReport } from "../run-load.ts";
import { formatMs, jsonFile, writeJson } from "./output.ts";

const loadScenarioConfig = defineConfig(
  "bench load",
  {
    url: text("url", "URL of the server.", { default: "http://127.0.0.1:3000" }),
    model: text("model", "Model to request. Left out: the first that the server lists.", {
      optional: true,
      env: ["MODEL_ID"],
    }),
    apiKey: secret("api_key", "API key to send.", { env: ["OPENAI_API_KEY"] }),
    ...loadSettings({ requests: 256, streams: 32, rampMs: 0, tokens: 128, promptWords: 64 }),
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
    json: jsonFile,
  },
  {
    summary: "Loads any OpenAI server: TTFT, ITL, TPOT, goodput, CPU.",
    usage: "npm run bench -- load --url URL [--rate 20] [--slo-ttft 200] [--slo-tpot 30]",
  },
);

export async function runLoadScenario(argv: readonly string[]): Promise<void> {
  const config = loadConfig(loadScenarioConfig, { argv, env: process.env });
  const load = { ...config, model: config.model ?? (await firstModel(config.url, config.apiKey)) };
  const watched = config.pid.map((written) => {
    const [name, pid] = written.split("=");
    return { name: name!, pid: Number(pid), beforeMs: cpuMs(Number(pid)) };
  });
  const result = await runLoad(config.url, load, config.apiKey);
  const report = reportOf([result], { ttftMs: config.sloTtftMs, tpotMs: config.sloTpotMs });
  const processes = watched.map(({ name, pid, beforeMs }) => ({
    name,
    cpuMsPer1000Chunks: ((cpuMs(pid) - beforeMs) * 1000) / report.chunks,
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
  return `${[
    renderTable(TIMES, [
      { title: "ms", cell: ([, title]) => title },
      ...(["mean", "p50", "p95", "p99", "max"] as const).map((key) => ({
        title: key,
        align: "right" as const,
        cell: ([time]: (typeof TIMES)[number]) => formatMs(report[time][key]),
      })),
    ]),
    "",
    `requests ${report.requests}, failed ${report.failed}; ${report.requestsPerS.toFixed(1)} requests/s, ${report.tokensPerS.toFixed(0)} tokens/s, goodput ${report.goodputPerS.toFixed(1)} requests/s`,
    ...processes.map((row) => `${row.name}: ${formatMs(row.cpuMsPer1000Chunks)} ms CPU per 1,000 chunks`),
    ...report.errors.map((error) => `error: ${error}`),
  ].join("\n")}\n`;
}
