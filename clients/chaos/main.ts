// `npm run chaos`: a whole deployment of real processes under load. A seeded schedule injects faults, and the results
// are checked against the promises of docs and design.
import { appendFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { ConfigError, loadConfig } from "../../services/common/config.ts";
import { openAiClient } from "../client/openai.ts";
import { startEngine } from "../loadgen/processes.ts";
import { writeJson } from "../loadgen/scenarios/output.ts";
import { makeAsks, rightAnswers } from "./asks.ts";
import { becomesTrue } from "./becomes-true.ts";
import { checkProcesses } from "./process-watch.ts";
import { check, type Violation } from "./check.ts";
import { startCluster } from "./cluster.ts";
import { chaosConfig, type ChaosConfig } from "./config.ts";
import { injectFaults } from "./injector.ts";
import { startLoad } from "./load.ts";
import { makeReport, renderReport, type Report } from "./report.ts";
import { drainUnderLoad, silentInstance, type SceneResult } from "./scenes.ts";
import { FAULT_NAMES, planFaults, type PlannedFault } from "./schedule.ts";
import { watchCluster } from "./watch.ts";

/** Number of different requests, each of which is sent again and again, and the longest prompt in words. */
const ASKS = {
  sim: { count: 192, wordLimit: 400 },
  /** Fewer and shorter, because a real model on the CPU computes each, alone and again under load. */
  embedded: { count: 24, wordLimit: 40 },
};
/** Time between the last fault and the end of the load, for recovery. */
const REST_MS = 8_000;
/** By then no engine or instance may hold anything of any request. */
const SETTLE_LIMIT_MS = 10_000;

/** Sets exit code 1 when a promise was broken. */
export async function chaos(argv: readonly string[]): Promise<void> {
  const config = loadConfig(chaosConfig, { argv, env: process.env });
  const unknown = config.kinds.find((kind) => !FAULT_NAMES.includes(kind));
  if (unknown !== undefined) throw new ConfigError(`"${unknown}" is not a fault. Known: ${FAULT_NAMES.join(", ")}.`);
  const lengthMs = config.minutes * 60_000;
  const restMs = Math.min(REST_MS, lengthMs / 3);
  const plan = planFaults(config.seed, lengthMs, config, { kinds: config.kinds, restMs });
  if (config.plan) return void process.stdout.write(plan.map((fault) => `${JSON.stringify(fault)}\n`).join(""));
  if (process.platform !== "linux")
    throw new ConfigError("npm run chaos finds its processes in /proc and needs Linux.");
  const folder = mkdtempSync(join(tmpdir(), `tandem-chaos-${config.seed}-`));
  const report = await run(config, lengthMs, plan, folder);
  process.stdout.write(renderReport(report, folder));
  writeJson(config.json, report);
  if (report.violations.length > 0) process.exitCode = 1;
  else if (!config.keep) rmSync(folder, { recursive: true, force: true });
}

async function run(
  config: ChaosConfig,
  lengthMs: number,
  plan: readonly PlannedFault[],
  folder: string,
): Promise<Report> {
  const { seed, engineKind, streams, hangMs, stallMs, slackMs } = config;
  const say = (line: string): void => void process.stderr.write(`${line}\n`);
  const isSim = engineKind === "sim";
  const kindFlags = isSim ? [] : ["--no-sim"];
  const pace = isSim ? [`--sim.decode_ms_per_token=${config.decodeMs}`] : [];
  const engineFlags = [
    ...pace,
    "--inject",
    "--kv.push_timeout_ms=1500",
    ...(isSim && config.upstream ? ["--fault=upstream"] : []),
  ];
  say("starting the deployment ...");
  await using reference = await startEngine([...kindFlags, "--kv.slots=64"]);
  await using control = await startEngine([...kindFlags, ...pace]);
  await using cluster = await startCluster(config, engineFlags, folder);
  await cluster.ready();
  const [served] = await openAiClient(cluster.routers[0]!.url).models();
  const model = served!.id;
  const asks = makeAsks(seed, model, { ...ASKS[engineKind], tokenLimit: config.tokens });
  const answers = await rightAnswers(reference.url, asks);
  const body = { model, prompt: "control", max_tokens: 400, ignore_eos: true, temperature: 0, stream: true };
  const watch = watchCluster(cluster, { url: control.url, body: JSON.stringify(body) });

  const startMs = performance.now();
  const load = startLoad(cluster.routers, asks, config);
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
  const isSettled = await becomesTrue(SETTLE_LIMIT_MS, 100, async () => {
    const left = await watch.left();
    return left !== undefined && left.heldKv + left.busyLegs + left.orphans === 0;
  });
  const settledMs = isSettled ? performance.now() - loadEndMs : undefined;
  if (!isSettled) {
    const what = `${SETTLE_LIMIT_MS} ms after the last stream: ${JSON.stringify(await watch.left())}`;
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
    for (const part of isSim ? (["engine", "process"] as const) : (["process"] as const)) {
      for (const role of ["decode", "prefill"] as const)
        scenes.push(await scene(`silent ${role}, ${part}`, () => silentInstance(o, role, part)));
    }
  }
  await watch.stop();
  const { records } = load;
  const result = check({ records, faults, receipts: watch.receipts, answers, kv: watch.kv, stallMs, slackMs });
  if (watch.leasesExpired > 0)
    violations.push({ rule: "orphan", what: `${watch.leasesExpired} leases of KV ran out on engines` });
  violations.push(...checkProcesses(watch.processes));
  return makeReport({ seed, lengthS, requests: records.length, settledMs }, faults, result, watch, scenes, violations);
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
