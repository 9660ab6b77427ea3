// `npm run chaos`: a whole deployment of real processes under load. A seeded schedule injects faults, and the results
// are checked against the promises of docs and design.
import { createWriteStream, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { ConfigError, loadConfig } from "../../services/common/config.ts";
import { openAiClient } from "../client/openai.ts";
import { startEngine } from "../loadgen/processes.ts";
import { writeJson } from "../loadgen/scenarios/output.ts";
import { makeAsks, rightAnswers } from "./asks.ts";
import { check, type Violation } from "./check.ts";
import { startCluster } from "./cluster.ts";
import { chaosConfig, type ChaosConfig } from "./config.ts";
import { createInjector } from "./injector.ts";
import { startLoad } from "./load.ts";
import { makeReport, renderReport, type Report } from "./report.ts";
import { drainUnderLoad, silentInstance, type SceneResult } from "./scenes.ts";
import { HARD_FAULTS, planFaults, SOFT_FAULTS } from "./schedule.ts";
import { watchCluster } from "./watch.ts";

/** Number of different requests; each is sent again and again. */
const ASKS = 192;
/** Longest prompt, in words. */
const WORDS = 400;
/** Fewer and shorter, because a real model on the CPU computes each, alone and again under load. */
const EMBEDDED = { asks: 24, words: 40 };
/** Time between the last fault and the end of the load, for recovery. */
const REST_MS = 8_000;
const LEAVE_SHARE = 0.05;
const HOLD_SHARE = 0.03;
/** By then no engine or instance may hold anything of any request. */
const SETTLE_LIMIT_MS = 10_000;

/** Sets exit code 1 when a promise was broken. */
export async function chaos(argv: readonly string[]): Promise<void> {
  const config = loadConfig(chaosConfig, { argv, env: process.env });
  const fleet = { routers: config.routers, prefill: config.prefill, decode: config.decode };
  const lengthMs = config.minutes * 60_000;
  const known: readonly string[] = [...HARD_FAULTS, ...SOFT_FAULTS];
  for (const kind of config.kinds)
    if (!known.includes(kind)) throw new ConfigError(`"${kind}" is not a fault. Known: ${known.join(", ")}.`);
  const plan = planFaults(config.seed, lengthMs, fleet, {
    kinds: config.kinds,
    restMs: Math.min(REST_MS, lengthMs / 3),
  });
  if (config.plan) {
    for (const fault of plan) process.stdout.write(`${JSON.stringify(fault)}\n`);
    return;
  }
  if (process.platform !== "linux")
    throw new ConfigError("npm run chaos finds its processes in /proc and needs Linux.");
  const folder = mkdtempSync(join(tmpdir(), `tandem-chaos-${config.seed}-`));
  const report = await run(config, plan, folder);
  process.stdout.write(renderReport(report, folder));
  writeJson(config.json, report);
  if (report.violations.length > 0) process.exitCode = 1;
  else if (!config.keep) rmSync(folder, { recursive: true, force: true });
}

async function run(config: ChaosConfig, plan: ReturnType<typeof planFaults>, folder: string): Promise<Report> {
  const say = (line: string): void => void process.stderr.write(`${line}\n`);
  const events = createWriteStream(config.events ?? join(folder, "events.jsonl"));
  const isSim = config.engineKind === "sim";
  const pace = isSim ? [`--sim.decode_ms_per_token=${config.decodeMs}`] : [];
  const engineFlags = [...pace, "--kv.push_timeout_ms=1500", ...(isSim && config.upstream ? ["--fault=upstream"] : [])];
  say("starting the deployment ...");
  await using reference = await startEngine([...(isSim ? [] : ["--no-sim"]), "--kv.slots=64"]);
  await using control = await startEngine([...(isSim ? [] : ["--no-sim"]), ...pace]);
  const fleet = { routers: config.routers, prefill: config.prefill, decode: config.decode };
  const cluster = await startCluster({
    fleet,
    engine: config.engineKind,
    engineFlags,
    stallMs: config.stallMs,
    folder,
  });
  try {
    await cluster.ready();
    const model = (await openAiClient(cluster.routers[0]!.url).models())[0]!.id;
    const asks = makeAsks(config.seed, isSim ? ASKS : EMBEDDED.asks, model, {
      tokenLimit: config.tokens,
      wordLimit: isSim ? WORDS : EMBEDDED.words,
    });
    const answers = await rightAnswers(reference.url, asks);
    const controlBody = JSON.stringify({
      model,
      prompt: "control",
      max_tokens: 400,
      ignore_eos: true,
      temperature: 0,
      stream: true,
    });
    const watch = watchCluster(cluster, { url: control.url, body: controlBody });
    const startMs = performance.now();
    const injector = createInjector(cluster, (fault, what) => {
      const atMs = Math.round((what === "began" ? fault.beganMs : fault.healedMs!) - startMs);
      const { index, kind, target, durationMs, engineFault, skipped } = fault;
      events.write(
        `${JSON.stringify({ atMs, unixMs: Date.now(), what, index, kind, target, durationMs, engineFault, skipped })}\n`,
      );
    });
    const load = startLoad({
      routers: cluster.routers.map(({ process, url }) => ({ name: process.name, url })),
      asks,
      streams: config.streams,
      seed: config.seed,
      hangMs: config.hangMs,
      leaveShare: LEAVE_SHARE,
      holdShare: HOLD_SHARE,
    });
    const lengthMs = config.minutes * 60_000;
    say(`${plan.length} faults in ${(lengthMs / 1000).toFixed(0)} s on ${config.streams} streams ...`);
    const telling = setInterval(
      () => say(`${((performance.now() - startMs) / 1000).toFixed(0)} s: ${load.records.length} requests`),
      10_000,
    );
    await injector.run(plan, startMs);
    await sleep(Math.max(0, startMs + lengthMs - performance.now()));
    await load.stop();
    clearInterval(telling);
    const lengthS = (performance.now() - startMs) / 1000;

    const violations: Violation[] = [];
    const settledMs = await untilSettled(watch);
    const left = settledMs === undefined ? await watch.left() : undefined;
    if (settledMs === undefined)
      violations.push({
        rule: "left behind",
        what: `${SETTLE_LIMIT_MS} ms after the last stream: ${JSON.stringify(left)}`,
        faults: [],
      });
    await cluster.ready(20_000).catch((error: unknown) => {
      violations.push({ rule: "start", what: (error as Error).message, faults: [] });
    });
    const scenes: SceneResult[] = [];
    if (config.scenes && violations.every(({ rule }) => rule !== "start")) {
      const o = { cluster, asks, answers, hangMs: config.hangMs, slackMs: config.slackMs };
      say("draining an instance under load ...");
      scenes.push(await scene("drain under load", () => drainUnderLoad(o, config.drainStreams)));
      say("sending requests to instances that answer nothing ...");
      for (const part of ["engine", "process"] as const) {
        if (part === "engine" && !isSim) continue;
        for (const role of ["decode", "prefill"] as const) {
          scenes.push(await scene(`silent ${role}, ${part}`, () => silentInstance(o, role, part)));
        }
      }
    }
    await watch.stop();
    const { records } = load;
    const result = check({
      records,
      faults: injector.faults,
      receipts: watch.receipts,
      answers,
      kv: watch.kv,
      stallMs: config.stallMs,
      slackMs: config.slackMs,
    });
    if (watch.leasesExpired > 0)
      violations.push({ rule: "orphan", what: `${watch.leasesExpired} leases of KV ran out on engines`, faults: [] });
    return makeReport({
      seed: config.seed,
      lengthS,
      requests: records.length,
      faults: injector.faults,
      result,
      leasesExpired: watch.leasesExpired,
      settledMs,
      controlGapsMs: watch.controlGapsMs,
      routers: watch.routers,
      scenes,
      violations,
    });
  } finally {
    await cluster.close();
    await new Promise((resolve) => events.end(resolve));
  }
}

/** A scene that fails to run is a violation, and does not end the report. */
async function scene(name: string, play: () => Promise<SceneResult>): Promise<SceneResult> {
  try {
    return await play();
  } catch (error) {
    const what = `could not run: ${(error as Error).message}`;
    return { name, figures: what, violations: [{ rule: "scene", what: `${name} ${what}`, faults: [] }] };
  }
}

/** Duration in milliseconds. */
async function untilSettled(watch: ReturnType<typeof watchCluster>): Promise<number | undefined> {
  const startMs = performance.now();
  while (performance.now() - startMs < SETTLE_LIMIT_MS) {
    const left = await watch.left();
    if (left !== undefined && left.heldKv + left.busyLegs + left.orphans === 0) return performance.now() - startMs;
    await sleep(100);
  }
  return undefined;
}
