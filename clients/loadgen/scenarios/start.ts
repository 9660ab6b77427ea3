// `npm run bench -- start`: from `npm start` to the first token, as a new user experiences it.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { defineConfig, integer, milliseconds, loadConfig, StartError } from "../../../services/common/config.ts";
import { freePort } from "../../../services/common/ports.ts";
import { summarise } from "../statistics.ts";
import { streamRequest } from "../stream-request.ts";
import { formatMs, jsonFile, writeJson } from "./output.ts";

const startConfig = defineConfig(
  "bench start",
  {
    runs: integer("runs", "Number of timed starts.", { default: 5, min: 1, max: 100 }),
    limitMs: milliseconds("limit_ms", "Exit with 1 if the median is above this.", { default: 2_500, max: Infinity }),
    json: jsonFile,
  },
  { summary: "Times `npm start` to the first token.", usage: "npm run bench -- start" },
);

/** Pause between two attempts to get a token: small compared with the measured time. */
const TRY_MS = 10;
const START_LIMIT_MS = 60_000;

export async function runStart(argv: readonly string[]): Promise<void> {
  const config = loadConfig(startConfig, { argv, env: process.env });
  const times: number[] = [];
  for (let tries = 0; times.length < config.runs && tries < config.runs * 2; tries++) {
    const { ms, built } = await oneStart();
    if (!built) times.push(ms);
    process.stdout.write(`first token after ${formatMs(ms)} ms${built ? ", with a build: not counted" : ""}\n`);
  }
  const summary = summarise(times);
  process.stdout.write(
    `median ${formatMs(summary.p50)} ms, slowest ${formatMs(summary.max)} ms; limit ${config.limitMs} ms\n`,
  );
  writeJson(config.json, { scenario: "start", firstTokenMs: times, summary });
  if (summary.p50 > config.limitMs) process.exitCode = 1;
}

/** `built`: sources had changed, so `npm start` built them first. */
async function oneStart(): Promise<{ ms: number; built: boolean }> {
  const [port, grpcPort] = [await freePort(), await freePort()];
  const stateDir = mkdtempSync(join(tmpdir(), "tandem-start-"));
  const startMs = performance.now();
  const npm = spawn("npm", ["start", "--", `--port=${port}`, `--grpc-port=${grpcPort}`, `--state.dir=${stateDir}`], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  let errors = "";
  npm.stderr.setEncoding("utf8").on("data", (piece: string) => (errors = (errors + piece).slice(-4000)));
  let ended = false;
  const end = once(npm, "close").then(() => (ended = true));
  try {
    const body = JSON.stringify({ prompt: "Hello", max_tokens: 1, stream: true });
    while (!ended && performance.now() - startMs < START_LIMIT_MS) {
      const { completed, firstMs } = await streamRequest({ url: `http://127.0.0.1:${port}` }, body);
      if (completed && firstMs !== undefined)
        return { ms: firstMs - startMs, built: /^tandem: (installing|generating|building)/m.test(errors) };
      await sleep(TRY_MS);
    }
    throw new StartError(`npm start gave no token:\n${errors}`);
  } finally {
    npm.kill("SIGINT");
    await end;
    rmSync(stateDir, { recursive: true, force: true });
  }
}
