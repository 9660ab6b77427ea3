// `npm run bench -- strangers`: what callers without credentials at the router's gRPC port cost those who stream from it.
// Each attack has its own quiet time before it, through the same deployment.
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { defineConfig, integer, loadConfig, milliseconds } from "../../../services/common/config.ts";
import { openAiClient } from "../../client/openai.ts";
import { STRANGERS } from "../../common/strangers.ts";
import { renderTable } from "../../common/table.ts";
import { startUp } from "../processes.ts";
import { rssBytes } from "../procfs.ts";
import { reportOf, runLoad, type LoadReport } from "../run-load.ts";
import type { StrangersData } from "../strangers-thread.ts";
import { formatMib, formatMs, jsonFile, writeJson } from "./output.ts";

const SAMPLE_MS = 100;

const strangersConfig = defineConfig(
  "bench strangers",
  {
    streams: integer("streams", "Concurrent streams of those who have credentials.", { default: 16, min: 1 }),
    seconds: integer("seconds", "Length of a quiet time, and of the time with an attack.", {
      default: 15,
      min: 1,
      max: 3_600,
      unit: "s",
    }),
    tokens: integer("tokens", "Length of an answer.", { default: 20, min: 1, unit: "tokens" }),
    ttftMs: milliseconds("limit.ttft_ms", "Longest time that an attack may add to TTFT at p99.", { default: 50 }),
    memoryMib: integer("limit.memory_mib", "Most memory that an attack may add to the router.", {
      default: 32,
      min: 0,
      unit: "MiB",
    }),
    json: jsonFile,
  },
  {
    summary: "What strangers at the gRPC port cost those who stream: failures, TTFT, memory of the router.",
    usage: "npm run bench -- strangers [--seconds 15] [--json FILE]",
  },
);

interface Phase {
  readonly report: LoadReport;
  /** Most memory that the router had. */
  readonly peakBytes: number;
}

export async function runStrangers(argv: readonly string[]): Promise<void> {
  const config = loadConfig(strangersConfig, { argv, env: process.env });
  await using up = await startUp(["--engine", "sim"]);
  const { grpcAddress, processes } = up.run;
  const router = processes.find(({ role }) => role === "router")!.pid;
  const model = (await openAiClient(up.url).models())[0]!.id;
  const shape = { model, streams: config.streams, rate: 0, rampMs: 0, promptWords: 64, tokens: config.tokens };
  let seed = 0;
  const phase = async (seconds: number): Promise<Phase> => {
    let peakBytes = rssBytes(router);
    const sampler = setInterval(() => (peakBytes = Math.max(peakBytes, rssBytes(router))), SAMPLE_MS);
    const rounds = [];
    const began = performance.now();
    do rounds.push(await runLoad(up.url, { ...shape, requests: 4 * config.streams, seed: ++seed }));
    while (performance.now() - began < seconds * 1000);
    clearInterval(sampler);
    return { report: reportOf(rounds), peakBytes };
  };

  // Until its code is compiled and its heap has its size.
  await phase(2 * config.seconds);
  const rows = [];
  for (const attack of Object.keys(STRANGERS)) {
    const quiet = await phase(config.seconds);
    const signal = new Int32Array(new SharedArrayBuffer(4));
    const data: StrangersData = { attack, grpcAddress, signal };
    const thread = new Worker(new URL("../strangers-thread.js", import.meta.url), { workerData: data });
    await once(thread, "message");
    Atomics.store(signal, 0, 1);
    Atomics.notify(signal, 0);
    const attacked = await phase(config.seconds);
    await thread.terminate();
    rows.push({
      attack,
      quiet,
      attacked,
      addedTtftMs: attacked.report.ttft.p99 - quiet.report.ttft.p99,
      addedBytes: attacked.peakBytes - quiet.peakBytes,
    });
  }

  const failed = rows.reduce((sum, { quiet, attacked }) => sum + quiet.report.failed + attacked.report.failed, 0);
  const worst = (values: readonly number[]): number => Math.max(...values);
  const addedTtftMs = worst(rows.map((row) => row.addedTtftMs));
  const addedBytes = worst(rows.map((row) => row.addedBytes));
  process.stdout.write(
    `${renderTable(rows, [
      { title: "strangers", cell: ({ attack }) => attack },
      { title: "requests", align: "right", cell: ({ attacked }) => `${attacked.report.requests}` },
      { title: "failed", align: "right", cell: ({ attacked }) => `${attacked.report.failed}` },
      { title: "TTFT p99 before", align: "right", cell: ({ quiet }) => formatMs(quiet.report.ttft.p99) },
      { title: "with", align: "right", cell: ({ attacked }) => formatMs(attacked.report.ttft.p99) },
      { title: "MiB before", align: "right", cell: ({ quiet }) => formatMib(quiet.peakBytes) },
      { title: "with", align: "right", cell: ({ attacked }) => formatMib(attacked.peakBytes) },
    ])}\n\n${failed} failed; TTFT p99 +${formatMs(addedTtftMs)} ms (limit ${config.ttftMs}); memory of the router +${formatMib(addedBytes)} MiB (limit ${config.memoryMib})\n`,
  );
  writeJson(config.json, { scenario: "strangers", failed, addedTtftMs, addedBytes, rows });
  if (failed > 0 || addedTtftMs > config.ttftMs || addedBytes > config.memoryMib * 2 ** 20) process.exitCode = 1;
}
