// The steps of the GPU run, each timed and written to the report as it ends.
import { mkdirSync, writeFileSync } from "node:fs";
import { CONNECTOR, only, OUT } from "./settings.mjs";

mkdirSync(OUT, { recursive: true });
const report = { startedAt: new Date().toISOString(), connector: CONNECTOR, steps: {} };

/** `work` returns what is reported of the step, `ok: false` where what it saw is not what it must see. */
export async function step(name, work) {
  if (only !== undefined && !only.includes(name)) return undefined;
  const startMs = performance.now();
  let entry;
  try {
    entry = { ok: true, ...(await work()) };
  } catch (error) {
    entry = { ok: false, error: String(error?.stack ?? error).slice(0, 3_000) };
  }
  entry.seconds = Math.round((performance.now() - startMs) / 100) / 10;
  report.steps[name] = entry;
  writeReport();
  console.log(`${entry.ok ? "done  " : "FAILED"} ${name} ${entry.seconds} s ${JSON.stringify(entry).slice(0, 600)}`);
  return entry;
}

export function writeReport() {
  writeFileSync(`${OUT}/report.json`, `${JSON.stringify(report, null, 2)}\n`);
  const lines = Object.entries(report.steps).map(
    ([name, entry]) =>
      `## ${name}: ${entry.ok ? "done" : "FAILED"} (${entry.seconds} s)\n\n\`\`\`json\n${JSON.stringify(entry, null, 2)}\n\`\`\`\n`,
  );
  writeFileSync(`${OUT}/report.md`, `# GPU run of ${report.startedAt}, ${CONNECTOR}\n\n${lines.join("\n")}`);
}

export const allOk = () => Object.values(report.steps).every(({ ok }) => ok);
