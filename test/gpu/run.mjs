// The GPU run: vLLM with P2P NCCL through router and wrappers on two GPUs, each step recorded, none stopping the next.
// node run.mjs --out DIR --models DIR [--only STEP,STEP] [--rehearse VLLM]: the last runs what it can on a CPU with NIXL.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { parseArgs } from "node:util";
import { compare, eachOf, firstToken, json, load, post, randomIds } from "./ask.mjs";
import { doctor, freePort, instances, start, tail, tandem, until } from "./servers.mjs";

const { values: o } = parseArgs({ options: { out: { type: "string" }, models: { type: "string" }, only: { type: "string" }, rehearse: { type: "string" } } });
const OUT = o.out ?? ".";
mkdirSync(OUT, { recursive: true });
const rehearsal = o.rehearse !== undefined;
const TOKEN = "gpu-run";
const VLLM = o.rehearse ?? "python3 -m vllm.entrypoints.cli.main";
const CONNECTOR = rehearsal ? "nixl" : "p2p-nccl";
const TINY = rehearsal ? o.models : `${o.models}/tiny`;
const FLAGS = rehearsal
  ? ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--block-size", "32", "--kv-cache-memory-bytes", "64M", "--distributed-executor-backend", "uni"]
  : ["--dtype", "bfloat16", "--max-model-len", "4096", "--attention-backend", "FLASH_ATTN"];
const LENGTHS = rehearsal ? [1, 2, 31, 32, 33, 100, 200, 400] : [1, 2, 15, 16, 17, 100, 257, 500, 1000, 1023, 1500, 2000];
const PROMPTS = Array.from({ length: 24 }, (_, index) => randomIds(index + 1, LENGTHS[index % LENGTHS.length]));
const report = { startedAt: new Date().toISOString(), connector: CONNECTOR, steps: {} };
const only = o.only?.split(",");

async function step(name, work) {
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

function writeReport() {
  writeFileSync(`${OUT}/report.json`, `${JSON.stringify(report, null, 2)}\n`);
  const lines = Object.entries(report.steps).map(([name, entry]) => `## ${name}: ${entry.ok ? "done" : "FAILED"} (${entry.seconds} s)\n\n\`\`\`json\n${JSON.stringify(entry, null, 2)}\n\`\`\`\n`);
  writeFileSync(`${OUT}/report.md`, `# GPU run of ${report.startedAt}, ${CONNECTOR}\n\n${lines.join("\n")}`);
}

/** A vLLM alone, by hand: what answers are compared with, and the controls that must fail. */
async function bare(name, flags, env = {}) {
  const port = await freePort();
  const words = VLLM.split(" ");
  const server = start(words[0], [...words.slice(1), "serve", TINY, "--served-model-name", "m", "--host", "127.0.0.1", "--port", String(port), ...FLAGS, ...flags], `${OUT}/${name}.log`, env);
  const url = `http://127.0.0.1:${port}`;
  await until(name, async () => (await fetch(`${url}/health`)).status === 200, 600_000, server);
  return { ...server, url, port };
}

/** `tandem up`, ready: every instance takes legs. */
async function up(name, model, flags, engineFlags, limitMs = 900_000) {
  const [port, grpc] = [await freePort(), await freePort()];
  const server = tandem(["up", "--port", String(port), "--grpc-port", String(grpc), "--state.dir", `${OUT}/${name}`, "--verbose", ...flags, "--vllm.command", VLLM, "--model", model, "--served_name", "m", "--", ...engineFlags],
    `${OUT}/${name}.log`, { TANDEM_TOKEN: TOKEN, TANDEM_LOG_LEVEL: "debug" });
  const url = `http://127.0.0.1:${port}`;
  const serving = async () => (await instances(url, TOKEN)).every(({ eligible }) => eligible === true) && (await instances(url, TOKEN)).length >= 2;
  await until(`${name} serves`, serving, limitMs, server);
  return { ...server, url, serving };
}

const UP = ["--engine", "vllm", "--connector", CONNECTOR];
const PAIR = rehearsal ? [] : ["--gpus", "0,1"];
const engineOf = (instance) => {
  const list = execFileSync("ps", ["-eo", "pid=,ppid=,args="], { encoding: "utf8" }).trim().split("\n").map((line) => /^\s*(\d+)\s+(\d+)\s+(.*)$/.exec(line));
  const below = (pid) => list.filter(([, , parent]) => Number(parent) === pid).flatMap((found) => [found, ...below(Number(found[1]))]);
  return below(instance.info.pid).filter(([, , , args]) => !args.startsWith("/bin/sh")).map(([, pid]) => Number(pid));
};

await step("versions", async () => ({
  node: process.version,
  gpus: rehearsal ? "none" : execFileSync("nvidia-smi", ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"], { encoding: "utf8" }).trim().split("\n"),
  links: rehearsal ? "" : execFileSync("nvidia-smi", ["topo", "-m"], { encoding: "utf8" }).slice(0, 800),
}));

let reference;
await step("reference", async () => {
  const plain = await bare("aggregated", ["--enforce-eager", ...(rehearsal ? [] : ["--gpu-memory-utilization", "0.6"])], { CUDA_VISIBLE_DEVICES: "0" });
  try {
    const alone = await eachOf(PROMPTS, 1, (prompt) => firstToken(plain.url, "m", prompt));
    const underLoad = await eachOf(PROMPTS, 24, (prompt) => firstToken(plain.url, "m", prompt));
    reference = alone;
    return { noise: compare(underLoad, alone) };
  } finally {
    await plain.stop();
  }
});

let pair;
await step("start", async () => {
  pair = await up("pair", TINY, [...UP, ...PAIR], FLAGS);
  return { lines: tail(pair.log, 200).split("\n").filter((line) => /engine works|ready/.test(line)) };
});
if (pair !== undefined) {
  await step("correct", async () => {
    const alone = await eachOf(PROMPTS, 1, (prompt) => firstToken(pair.url, "m", prompt));
    const together = await eachOf(PROMPTS, 24, (prompt) => firstToken(pair.url, "m", prompt));
    // The same prompts again: what prefill has cached must reach decode as well.
    const again = await eachOf(PROMPTS, 24, (prompt) => firstToken(pair.url, "m", prompt));
    return { alone: compare(alone, reference), together: compare(together, reference), again: compare(again, reference) };
  });
  await step("shapes", async () => {
    const chat = await json(await post(pair.url, "/v1/chat/completions", { model: "m", messages: [{ role: "user", content: "hello" }], max_tokens: 8 })).catch((error) => String(error));
    const stream = await (await post(pair.url, "/v1/completions", { model: "m", prompt: "hello", max_tokens: 8, stream: true })).text();
    const several = await json(await post(pair.url, "/v1/completions", { model: "m", prompt: ["one", "two"], n: 2, temperature: 1, max_tokens: 4 }));
    return { chat: chat.choices?.[0]?.finish_reason ?? chat, streamEnds: stream.endsWith("data: [DONE]\n\n"), choices: several.choices.length };
  });
  await step("doctor", async () => {
    const found = await doctor(pair.url, TOKEN, `${OUT}/doctor.json`);
    return { bad: found.filter(({ finding }) => /ERROR|WARNING/.test(finding.level)), canaries: found.filter(({ finding }) => finding.check === "canary").map(({ finding }) => finding.message) };
  });
  await step("kv_moved_by_nccl", async () => {
    const log = readFileSync(pair.log, "utf8").split("\n").filter((line) => /ncclCommInitRank|P2pNccl|NCCL INFO/.test(line));
    return { lines: log.length, sample: log.slice(0, 5).map((line) => line.slice(0, 300)) };
  });
  await step("cancelled_between_legs", async () => {
    await Promise.all(Array.from({ length: 40 }, async (_, index) => {
      const gone = new AbortController();
      setTimeout(() => gone.abort(), index * 10);
      await post(pair.url, "/v1/completions", { model: "m", prompt: randomIds(5_000 + index, LENGTHS.at(-1)), max_tokens: 200 }, gone.signal).then((answer) => answer.text()).catch(() => {});
    }));
    await until("no orphan is left", async () => (await instances(pair.url, TOKEN)).every(({ load }) => (load.kvOrphans ?? 0) === 0 && (load.running ?? 0) === 0), 60_000);
    return { after: (await instances(pair.url, TOKEN)).map(({ info, load }) => [info.role, load]), restarts: (tail(pair.log, 4_000).match(/the engine is lost/g) ?? []).length };
  });
  for (const role of ["PREFILL", "DECODE"]) {
    await step(`${role.toLowerCase()}_killed`, async () => {
      const victim = (await instances(pair.url, TOKEN)).find(({ info }) => info.role.endsWith(role));
      const running = Array.from({ length: 8 }, (_, index) => post(pair.url, "/v1/completions", { model: "m", prompt: randomIds(9_000 + index, LENGTHS.at(-1)), max_tokens: 100, stream: true }).then((answer) => answer.text()).catch(String));
      await new Promise((done) => setTimeout(done, 300));
      const killedMs = performance.now();
      process.kill(engineOf(victim).at(-1), "SIGKILL");
      await Promise.all(running);
      const endedMs = performance.now() - killedMs;
      await until("it serves again", async () => (await pair.serving()) && (await post(pair.url, "/v1/completions", { model: "m", prompt: "hello", max_tokens: 2 })).status === 200, 600_000, pair);
      return { requestsEndedMs: Math.round(endedMs), servesAgainMs: Math.round(performance.now() - killedMs) };
    });
  }
  await step("decode_starved", async () => {
    const burst = await eachOf(Array.from({ length: 96 }, (_, index) => randomIds(20_000 + index, LENGTHS.at(-1))), 96, async (prompt) => (await post(pair.url, "/v1/completions", { model: "m", prompt, max_tokens: 50 })).status);
    const after = await until("it serves", async () => (await post(pair.url, "/v1/completions", { model: "m", prompt: "hello", max_tokens: 2 })).status === 200, 600_000, pair).then(() => "serves");
    return { statuses: burst.reduce((counts, status) => ({ ...counts, [status]: (counts[status] ?? 0) + 1 }), {}), after };
  });
  await pair.stop();
}

// Controls: the doctor must find both. Started by hand, since the launcher refuses them.
if (!rehearsal) {
  const p2p = (role, kvPort, port) => ["--kv-transfer-config", JSON.stringify({
    kv_connector: "P2pNcclConnector", kv_role: role, kv_buffer_size: role === "kv_producer" ? "1e1" : "8e9", kv_port: String(kvPort),
    kv_connector_extra_config: { send_type: "PUT_ASYNC", nccl_num_channels: "16", mem_pool_size_gb: 4, http_port: String(port) },
  })];
  const ENV = { VLLM_HOST_IP: "127.0.0.1", VLLM_DISABLE_REQUEST_ID_RANDOMIZATION: "1" };
  const control = (name, decodeFlags) => step(name, async () => {
    const [pPort, dPort] = [await freePort(), await freePort()];
    const prefill = await bare(`${name}-prefill`, ["--enforce-eager", "--no-enable-chunked-prefill", "--gpu-memory-utilization", "0.6", ...p2p("kv_producer", pPort, 1)], { ...ENV, CUDA_VISIBLE_DEVICES: "0" });
    const decode = await bare(`${name}-decode`, ["--gpu-memory-utilization", "0.6", ...decodeFlags, ...p2p("kv_consumer", dPort, 2)], { ...ENV, CUDA_VISIBLE_DEVICES: "1" });
    const [rest, grpc] = [await freePort(), await freePort()];
    const wrap = (role, engine, kvPort) => tandem([role, "--grpc.listen", "127.0.0.1:0", "--registry.address", `127.0.0.1:${grpc}`, "--engine.attach", engine.url, "--connector", "p2p-nccl", "--engine.kv_address", `127.0.0.1:${kvPort}`], `${OUT}/${name}-${role}-wrapper.log`, { TANDEM_TOKEN: TOKEN });
    const router = tandem(["router", "--rest.listen", `127.0.0.1:${rest}`, "--grpc.listen", `127.0.0.1:${grpc}`], `${OUT}/${name}-router.log`, { TANDEM_TOKEN: TOKEN });
    const all = [router, wrap("prefill", prefill, pPort), wrap("decode", decode, dPort)];
    const url = `http://127.0.0.1:${rest}`;
    try {
      await until("both are known", async () => (await instances(url, TOKEN)).length === 2, 120_000);
      const found = (await doctor(url, TOKEN, `${OUT}/${name}-doctor.json`)).filter(({ finding }) => finding.check === "canary");
      const served = (await post(url, "/v1/completions", { model: "m", prompt: randomIds(1, 500), max_tokens: 1 })).status;
      return { foundByDoctor: found.some(({ finding }) => /ERROR/.test(finding.level)), findings: found.map(({ finding }) => finding.message), servedStatus: served };
    } finally {
      for (const one of [...all, prefill, decode]) await one.stop();
    }
  });
  await control("control_default_graphs", []);
  await control("control_other_weights", ["--enforce-eager", "--load-format", "dummy"]);

  const LLAMA = `${o.models}/llama8b`;
  const big = ["--load-format", "dummy", "--max-model-len", "8192", "--attention-backend", "FLASH_ATTN"];
  for (const [name, decodeFlag] of [["load_piecewise", undefined], ["load_eager", "--enforce-eager"]]) {
    await step(name, async () => {
      const server = await up(name, LLAMA, [...UP, ...PAIR, ...(decodeFlag === undefined ? [] : [`--decode.engine_flag=${decodeFlag}`])], big);
      try {
        const rates = [];
        for (const rate of [2, 4, 8]) rates.push(await load(server.url, "m", { rate, count: rate * 15, promptTokens: 2_000, maxTokens: 150 }));
        return { rates };
      } finally {
        await server.stop();
      }
    });
  }
}
writeReport();
console.log(`report: ${OUT}/report.md`);
process.exit(Object.values(report.steps).every(({ ok }) => ok) ? 0 : 1);
