// `npm run bench -- memory`: the memory of a whole system on a laptop, after some chats.
import { defineConfig, integer, loadConfig } from "../../../services/common/config.ts";
import { openAiClient } from "../../client/openai.ts";
import { renderTable } from "../../common/table.ts";
import { pssBytes } from "../procfs.ts";
import { processesOf, startUp } from "../processes.ts";
import { runLoad } from "../run-load.ts";
import { formatMib, jsonFile, writeJson } from "./output.ts";

const memoryConfig = defineConfig(
  "bench memory",
  {
    chats: integer("chats", "Requests before memory is measured.", { default: 100, min: 0, max: 1_000_000 }),
    limitMb: integer("limit_mb", "Exit with 1 if more memory is used, guardians excluded.", {
      default: 350,
      min: 1,
      unit: "MB",
    }),
    json: jsonFile,
  },
  { summary: "Measures the memory of the six processes of a small system.", usage: "npm run bench -- memory" },
);

export async function runMemory(argv: readonly string[]): Promise<void> {
  const config = loadConfig(memoryConfig, { argv, env: process.env });
  await using up = await startUp([]);
  const model = (await openAiClient(up.url).models())[0]!.id;
  const shape = { requests: config.chats, streams: 8, rate: 0, rampMs: 0 };
  const load = await runLoad(up.url, { ...shape, model, promptWords: 32, tokens: 64, seed: 1 });
  const rows = processesOf(up.run).map(({ name, pid }) => ({ name, pid, pssBytes: pssBytes(pid) }));
  const six = rows.filter((row) => !row.name.endsWith("guardian"));
  const sum = (list: readonly { pssBytes: number }[]): number => list.reduce((total, row) => total + row.pssBytes, 0);
  const mb = sum(six) / 1e6;
  process.stdout.write(
    `${renderTable(rows, [
      { title: "process", cell: (row) => row.name },
      { title: "pid", align: "right", cell: (row) => `${row.pid}` },
      { title: "PSS MiB", align: "right", cell: (row) => formatMib(row.pssBytes) },
    ])}\n\n${six.length} processes: ${mb.toFixed(0)} MB of ${config.limitMb} MB; with guardians ${(sum(rows) / 1e6).toFixed(0)} MB; ${load.results.filter((result) => result.completed).length} of ${config.chats} chats completed\n`,
  );
  writeJson(config.json, { scenario: "memory", processes: rows, sumMb: mb, limitMb: config.limitMb });
  if (mb > config.limitMb) process.exitCode = 1;
}
