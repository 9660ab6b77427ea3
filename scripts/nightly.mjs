// An hour of chaos over every fleet that ships, on each Node that is given: `node scripts/nightly.mjs [--minutes 60]
// [--out FOLDER] [--consul PROGRAM] NODE...`. Programs of Node; none: this one. Seeds come from the clock, all are listed,
// and no failed run is repeated. Ends with 1 when a promise was broken, with 2 when more than a tenth could not be judged.
import { spawn } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { once } from "node:events";
import { join } from "node:path";
import { parseArgs } from "node:util";

const CLI = "dist/clients/cli/main.js";
/** Length of one run, without its start and its scenes. */
const RUN_MINUTES = 2;
const FLEETS = ["sim", "p2p-nccl", "nixl", "embedded", "sim-attached", "p2p-nccl-attached", "nixl-attached"];

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    minutes: { type: "string", default: "60" },
    out: { type: "string", default: "chaos-nightly" },
    consul: { type: "string" },
  },
});
const nodes = positionals.length === 0 ? [process.execPath] : positionals;
const endMs = Date.now() + Number(values.minutes) * 60_000;
mkdirSync(values.out, { recursive: true });
const runs = [];
let child;
process.once("SIGINT", () => {
  child?.kill("SIGINT");
  process.exitCode = 130;
});
for (let index = 0; Date.now() < endMs && process.exitCode === undefined; index++) {
  const seed = Math.floor(Date.now() / 1000);
  const node = nodes[index % nodes.length];
  const fleet = FLEETS[Math.floor(index / nodes.length) % FLEETS.length];
  // Every other round in Consul, where there is one.
  const withConsul = values.consul !== undefined && Math.floor(index / nodes.length / FLEETS.length) % 2 === 1;
  const file = join(values.out, `${seed}.json`);
  const flags = ["--seed", seed, "--minutes", RUN_MINUTES, "--fleet", fleet, "--json", file];
  if (withConsul) flags.push("--consul", values.consul);
  child = spawn(node, [CLI, "chaos", ...flags.map(String)], { stdio: "inherit" });
  const [code] = await once(child, "close");
  const report = [0, 1, 2].includes(code) ? JSON.parse(readFileSync(file, "utf8")) : undefined;
  const verdict = code === 0 ? "kept" : code === 2 && report !== undefined ? "inconclusive" : "BROKEN";
  runs.push({ seed, fleet, node: report?.node ?? node, consul: withConsul, requests: report?.requests ?? 0, verdict });
  writeFileSync(join(values.out, "runs.json"), JSON.stringify(runs, undefined, 2));
}
for (const { seed, fleet, node, consul, requests, verdict } of runs)
  console.log(
    `seed ${seed}  ${fleet.padEnd(18)} ${node.padEnd(9)}${consul ? " consul" : ""} ${requests} requests  ${verdict}`,
  );
const broken = runs.filter(({ verdict }) => verdict === "BROKEN").length;
const open = runs.filter(({ verdict }) => verdict === "inconclusive").length;
console.log(`${runs.length} runs: ${broken} with broken promises, ${open} inconclusive`);
process.exitCode ??= broken > 0 ? 1 : open > runs.length / 10 ? 2 : 0;
