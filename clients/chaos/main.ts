// `npm run chaos`: a whole deployment of real processes under load. A seeded schedule injects faults, and the results
// are checked against the promises of docs and design.
import { appendFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { ConfigError, loadConfig } from "../../services/common/config.ts";
import { startEngine } from "../loadgen/processes.ts";
import { writeJson } from "../loadgen/scenarios/output.ts";
import { makeAsks, rightAnswers } from "./asks.ts";
import { becomesTrue } from "./becomes-true.ts";
import { check, judge, type Violation } from "./check.ts";
import { startCluster } from "./cluster.ts";
import { chaosConfig, type ChaosConfig } from "./config.ts";
import { engineFlags, FLEET_NAMES, FLEETS, impossibleOn, MODEL, type Fleet, type FleetName } from "./fleets.ts";
import { injectFaults } from "./injector.ts";
import { startLoad } from "./load.ts";
import { checkProcesses } from "./process-watch.ts";
import { makeReport, renderReport, renderRuns, type Report } from "./report.ts";
import { drainUnderLoad, silentInstance, type SceneResult } from "./scenes.ts";
import { FAULT_NAMES, planFaults, type PlannedFault } from "./schedule.ts";
import { watchCluster } from "./watch.ts";

/** Number of different requests, each of which is sent again and again, and the longest prompt in words. */
const ASKS = {
  simulated: { count: 192, wordLimit: 400 },
  /** Fewer and shorter, because a real model on the CPU computes each, alone and again under load. */
  embedded: { count: 24, wordLimit: 40 },
};
/** Time between the last fault and the end of the load, for recovery. */
const REST_MS = 8_000;
/** By then KV that only its lease of 30 s frees is gone. */
const LEASED_MS = 40_000;
/**
 * By then no engine or instance may hold anything of any request. NIXL's KV goes with its lease, and the debts of
 * P2P NCCL with restarts of idle engines, one after another.
 */
const SETTLE_LIMIT_MS = { "p2p-zmq": 10_000, nixl: LEASED_MS, "p2p-nccl": 120_000 };

/** Sets exit code 1 when a promise was broken, 2 when a run could not be judged. */
export async function chaos(argv: readonly string[]): Promise<void> {
  const config = loadConfig(chaosConfig, { argv, env: process.env });
  known("fault", config.kinds, FAULT_NAMES);
  known("fleet", config.fleets, [...FLEET_NAMES, "all"]);
  const fleets = fleetsOf(config.fleets);
  const firstSeed = config.seed ?? Math.floor(Date.now() / 1000);
  const lengthMs = config.minutes * 60_000;
  const planOf = (seed: number, fleet: Fleet): PlannedFault[] => {
    const restMs = Math.min(REST_MS, lengthMs / 3);
    const without = [...impossibleOn(fleet), ...(config.consul === undefined ? (["kill-consul"] as const) : [])];
    return planFaults(seed, lengthMs, config, { kinds: config.kinds, without, restMs });
  };
  if (config.plan) {
    const plan = planOf(firstSeed, FLEETS[fleets[0]!]);
    return void process.stdout.write(plan.map((fault) => `${JSON.stringify(fault)}\n`).join(""));
  }
  if (process.platform !== "linux")
    throw new ConfigError("npm run chaos finds its processes in /proc and needs Linux.");
  process.once("SIGINT", () => process.exit(130));
  process.once("SIGTERM", () => process.exit(143));
  const reports: Report[] = [];
  for (let index = 0; index < config.runs; index++) {
    const seed = firstSeed + index;
    const name = fleets[index % fleets.length]!;
    process.stderr.write(`run ${index + 1} of ${config.runs}: seed ${seed}, fleet ${name}, Node ${process.version}\n`);
    const folder = mkdtempSync(join(tmpdir(), `tandem-chaos-${seed}-`));
    const report = await run(config, { seed, name, lengthMs, plan: planOf(seed, FLEETS[name]), folder });
    reports.push(report);
    process.stdout.write(renderReport(report, folder));
    if (report.violations.length === 0 && !config.keep) rmSync(folder, { recursive: true, force: true });
  }
  if (reports.length > 1) process.stdout.write(renderRuns(reports));
  writeJson(config.json, reports.length === 1 ? reports[0]! : reports);
  if (reports.some(({ violations }) => violations.length > 0)) process.exitCode = 1;
  else if (reports.some(({ unjudged }) => unjudged.length > 0)) process.exitCode = 2;
}

/** @throws ConfigError */
function known(what: string, given: readonly string[], names: readonly string[]): void {
  const unknown = given.find((name) => !names.includes(name));
  if (unknown !== undefined) throw new ConfigError(`"${unknown}" is not a ${what}. Known: ${names.join(", ")}.`);
}

function fleetsOf(given: readonly string[]): readonly FleetName[] {
  if (given.includes("all")) return FLEET_NAMES;
  return given.length === 0 ? ["sim"] : (given as FleetName[]);
}

interface RunOptions {
  readonly seed: number;
  readonly name: FleetName;
  readonly lengthMs: number;
  readonly plan: readonly PlannedFault[];
  /** For logs. */
  readonly folder: string;
}

async function run(config: ChaosConfig, { seed, name, lengthMs, plan, folder }: RunOptions): Promise<Report> {
  const { hangMs, slackMs } = config;
  const fleet: Fleet = FLEETS[name];
  const say = (line: string): void => void process.stderr.write(`${line}\n`);
  const isEmbedded = fleet.engine === "embedded";
  const streams = config.streams ?? (isEmbedded ? 8 : 64);
  // The stand-in answers as a sim of the same model name does.
  const alone = isEmbedded ? ["--no-sim"] : engineFlags({ ...fleet, engine: "sim" }, config.decodeMs);
  const sound = alone.filter((flag) => !flag.startsWith("--fault"));
  say("starting the deployment ...");
  await using reference = await startEngine([
    ...(isEmbedded ? sound : ["--sim.decode_ms_per_token=0"]),
    `--model.name=${MODEL}`,
    "--kv.slots=64",
  ]);
  await using control = await startEngine([...sound, `--model.name=${MODEL}`]);
  await using cluster = await startCluster(config, fleet, folder);
  await cluster.ready();
  const asks = makeAsks(seed, MODEL, { ...ASKS[isEmbedded ? "embedded" : "simulated"], tokenLimit: config.tokens });
  const answers = await rightAnswers(reference.url, asks);
  const body = { model: MODEL, prompt: "control", max_tokens: 400, ignore_eos: true, temperature: 0, stream: true };
  const watch = watchCluster(cluster, { url: control.url, body: JSON.stringify(body) });

  const startMs = performance.now();
  const load = startLoad(cluster.routers, asks, { streams, hangMs }, seed);
  const passedS = (): number => (performance.now() - startMs) / 1000;
  say(`${plan.length} faults in ${(lengthMs / 1000).toFixed(0)} s on ${streams} streams ...`);
  const telling = setInterval(() => say(`${passedS().toFixed(0)} s: ${load.records.length} requests`), 10_000);
  const eventsFile = config.events ?? join(folder, "events.jsonl");
  const faults = await injectFaults(cluster, plan, (fault, what) => {
    const { index, kind, target, durationMs, engineFault, skipped } = fault;
    const atMs = Math.round((what === "began" ? fault.beganMs : fault.healedMs!) - startMs);
    const event = { atMs, unixMs: Date.now(), what, index, kind, target, durationMs, engineFault, skipped };
    appendFileSync(eventsFile, `${JSON.stringify(event)}\n`);
  });
  await sleep(Math.max(0, startMs + lengthMs - performance.now()));
  await load.stop();
  clearInterval(telling);
  const lengthS = passedS();

  const violations: Violation[] = [];
  const loadEndMs = performance.now();
  const { connector, attached } = fleet;
  // KV of an instance that was killed, whose engine lives on: nothing but its lease frees it.
  const forgot = attached && faults.some(({ kind }) => kind === "kill-wrapper");
  const settleLimitMs = Math.max(SETTLE_LIMIT_MS[connector], forgot ? LEASED_MS : 0);
  const isSettled = await becomesTrue(settleLimitMs, 100, async () => {
    const left = await watch.left();
    return left !== undefined && left.heldKv + left.busyLegs + left.orphans === 0;
  });
  const settledMs = isSettled ? performance.now() - loadEndMs : undefined;
  if (!isSettled) {
    const what = `${settleLimitMs} ms after the last stream: ${JSON.stringify(await watch.left())}`;
    violations.push({ rule: "left behind", what });
  }
  await cluster.ready(20_000).catch((error: unknown) => {
    violations.push({ rule: "start", what: (error as Error).message });
  });
  const scenes: SceneResult[] = [];
  if (config.scenes && violations.every(({ rule }) => rule !== "start")) {
    const o = { cluster, asks, answers, hangMs, slackMs };
    say("draining an instance under load ...");
    scenes.push(await scene("drain under load", () => drainUnderLoad(o, config.drainStreams)));
    say("sending requests to instances that answer nothing ...");
    for (const part of isEmbedded ? (["process"] as const) : (["engine", "process"] as const)) {
      for (const role of ["decode", "prefill"] as const)
        scenes.push(await scene(`silent ${role}, ${part}`, () => silentInstance(o, role, part)));
    }
  }
  await watch.stop();
  const { records } = load;
  const { violations: found, ...result } = check({
    records,
    faults,
    receipts: watch.receipts,
    answers,
    kv: watch.kv,
    connector,
    attached,
    slackMs,
  });
  if (watch.leasesExpired > 0 && connector !== "nixl" && !forgot)
    violations.push({ rule: "orphan", what: `${watch.leasesExpired} leases of KV ran out on engines` });
  const all = [...found, ...checkProcesses(watch.processes), ...scenes.flatMap((one) => one.violations), ...violations];
  const longestGapMs = watch.controlGapsMs.reduce((longest, ms) => Math.max(longest, ms), 0);
  const verdict = judge(all, longestGapMs);
  const figures = { seed, fleet: name, node: process.version, lengthS, requests: records.length, settledMs };
  return makeReport(figures, faults, result, watch, scenes, verdict);
}

/** A scene that fails to run is a violation, and does not end the report. */
async function scene(name: string, play: () => Promise<SceneResult>): Promise<SceneResult> {
  try {
    return await play();
  } catch (error) {
    const figures = `could not run: ${(error as Error).message}`;
    return { name, figures, violations: [{ rule: "scene", what: `${name} ${figures}` }] };
  }
}
