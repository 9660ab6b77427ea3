// One function for each npm script.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { ROOT, StepFailed } from "./process.mjs";
import { setUp } from "./set-up.mjs";

/** The contracts of the last release. A file, because a clone may have no history to compare with. */
const PROTO_BASELINE = "test/fixtures/proto-baseline.binpb";

const COMMANDS = { start, test, gen, format, lint, typecheck, build, bench, chaos, check };

/** @throws StepFailed when a step failed and has printed why. */
export async function runCommand(name, args) {
  const command = Object.hasOwn(COMMANDS, name ?? "") ? COMMANDS[name] : undefined;
  if (command === undefined) {
    throw new StepFailed(`usage: node scripts/run.mjs ${Object.keys(COMMANDS).join("|")} [ARGUMENTS]`, 2);
  }
  process.chdir(ROOT);
  await command(args);
}

async function start(args) {
  const { swallowedFlags } = await import("./npm-flags.mjs");
  const advice = swallowedFlags(process.env, args);
  if (advice !== undefined) throw new StepFailed(advice, 2);
  await setUp("build");
  const [major] = process.versions.node.split(".").map(Number);
  // Node 20 gets no fixes any more, and a fault of its HTTP/2 once froze routers.
  if (major < 24) console.error(`Node ${process.versions.node} works; Node 24 is recommended, and faster.`);
  // In this process: a child would cost 40 MB and have its signals and exit code passed on.
  await runTandem(["up", ...args]);
}

async function bench(args) {
  await setUp("build");
  await runTandem(["bench", ...args]);
}

async function chaos(args) {
  await setUp("build");
  await runTandem(["chaos", ...args]);
}

/** Runs the built `tandem` as if it had been started by `node FILE ARGS`. */
async function runTandem(args) {
  const path = join(ROOT, "dist/clients/cli/main.js");
  process.argv = [process.argv[0], path, ...args];
  await import(pathToFileURL(path).href);
}

async function test(args) {
  await setUp("build");
  const { runTests } = await import("./tests.mjs");
  process.exitCode = await runTests(args);
}

async function build() {
  await setUp("build");
}

async function gen() {
  await setUp("build", { force: "gen" });
  const { writeDocs } = await import("./reference-docs.mjs");
  await writeDocs();
}

async function format() {
  await setUp("install");
  const { run, tool } = await import("./process.mjs");
  await run("biome", tool("@biomejs/biome/bin/biome"), ["format", "--write", "."]);
}

async function lint() {
  await setUp("install");
  const { run, tool } = await import("./process.mjs");
  await run("biome", tool("@biomejs/biome/bin/biome"), ["format", "."]);
  await run("buf lint", tool("@bufbuild/buf/bin/buf"), ["lint"]);
  await run("buf breaking", tool("@bufbuild/buf/bin/buf"), ["breaking", "--against", PROTO_BASELINE]);
  await run("oxlint", tool("oxlint/bin/oxlint"), ["--deny-warnings", "services", "clients", "test", "scripts"]);
}

async function typecheck() {
  await setUp("gen");
  const { run, tool } = await import("./process.mjs");
  await run("typecheck", tool("typescript/bin/tsc"), ["--noEmit", "-p", "tsconfig.json"]);
}

/** Everything that CI checks, quickest first. */
async function check(args) {
  const { lockFaults } = await import("./lock-check.mjs");
  const faults = lockFaults(JSON.parse(readFileSync("package-lock.json", "utf8")));
  if (faults.length > 0)
    throw new StepFailed(["package-lock.json can't be installed everywhere:", ...faults].join("\n  "));
  await setUp("build");
  await lint();
  await typecheck();
  const { checkDocs } = await import("./reference-docs.mjs");
  await checkDocs();
  await test(args);
}
