// The fault table of docs/faults.md: what clients see when an engine fails, behind Tandem and behind its rivals, all at
// their defaults. Engines are stand-ins: this measures routers, not engines.
//
//   npm run build && node test/peers/run.mjs [--only TEXT] [--contender NAME,...] [--out FILE] [--logs FOLDER]
//
// --only: cases whose name contains the text. --out: a JSON file that collects the cells of several runs, in which a new
// cell replaces its older one; the table is printed from all of it. The rivals are installed by pip, in
// ~/.cache/tandem/peers. All cases take about half an hour for Tandem and half an hour for the others. Linux only.
import { existsSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { CASES, play } from "./cases.mjs";
import { CONTENDERS, install, startFleet } from "./fleet.mjs";

const { values } = parseArgs({
  options: {
    only: { type: "string", default: "" },
    contender: { type: "string", default: Object.keys(CONTENDERS).join(",") },
    out: { type: "string" },
    logs: { type: "string", default: mkdtempSync(join(tmpdir(), "tandem-peers-")) },
  },
});
const cells = values.out !== undefined && existsSync(values.out) ? JSON.parse(readFileSync(values.out, "utf8")) : [];
const contenders = values.contender.split(",");
const missing = await install(contenders);
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(130));
for (const contender of contenders) {
  const reason = missing[CONTENDERS[contender].package];
  if (reason !== undefined) {
    console.error(`${contender}: not installed: ${reason}`);
    continue;
  }
  for (const [index, one] of CASES.entries()) {
    if (!one.name.includes(values.only)) continue;
    const load = loadavg()[0].toFixed(0);
    const seen = await runOne(contender, index, one).catch((error) => ({
      cell: `no result: ${error.message}`,
      results: [],
    }));
    const old = cells.findIndex((cell) => cell.contender === contender && cell.case === one.name);
    const entry = { contender, case: one.name, at: new Date().toISOString(), load, ...seen };
    if (old === -1) cells.push(entry);
    else cells[old] = entry;
    console.error(`${contender}, ${one.name} (load ${load}): ${seen.cell}`);
    if (values.out !== undefined) writeFileSync(values.out, JSON.stringify(cells, undefined, 1));
  }
}
console.log(table());

async function runOne(contender, index, one) {
  const folder = join(values.logs, `${index}-${contender}`);
  // A port that was free may be another program's by the time it is used.
  const fleet = await startFleet(contender, folder).catch(() => startFleet(contender, `${folder}-again`));
  try {
    return await play(one, fleet);
  } finally {
    await fleet.stop();
  }
}

function table() {
  const columns = Object.keys(CONTENDERS).filter((name) => cells.some(({ contender }) => contender === name));
  const rows = CASES.filter(({ name }) => cells.some((cell) => cell.case === name)).map(({ name }) => {
    const cellOf = (column) => cells.find((cell) => cell.case === name && cell.contender === column)?.cell ?? "–";
    return `| ${[name, ...columns.map(cellOf)].join(" | ")} |`;
  });
  return [`| fault | ${columns.join(" | ")} |`, `|${"---|".repeat(columns.length + 1)}`, ...rows].join("\n");
}
