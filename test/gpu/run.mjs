// The GPU run: vLLM with P2P NCCL through router and wrappers on two GPUs, each step recorded, none stopping the next.
// node run.mjs --out DIR --models DIR [--only STEP,STEP] [--rehearse VLLM | --stand-in]
// Without a GPU: --rehearse runs what can be run with a vLLM for the CPU and NIXL (DIR is one model then), --stand-in all of
// it with a program that passes for vLLM 0.23.0, which proves this script and nothing of vLLM.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { compare, eachOf, firstToken, json, load, post, randomIds } from "./ask.mjs";
import { below, doctor, freePort, instances, start, tail, tandem, until } from "./servers.mjs";

const { values: o } = parseArgs({
  options: {
    out: { type: "string" },
    models: { type: "string" },
    only: { type: "string" },
    rehearse: { type: "string" },
    "stand-in": { type: "boolean" },
  },
});
const OUT = o.out ?? ".";
mkdirSync(OUT, { recursive: true });
const rehearsal = o.rehearse !== undefined;
const TOKEN = "gpu-run";
const withoutGpu = rehearsal || o["stand-in"] === true;
const VLLM =
  o.rehearse ??
  (o["stand-in"] === true
    ? `${process.execPath} ${fileURLToPath(new URL("stand-in.mjs", import.meta.url))}`
    : "python3 -m vllm.entrypoints.cli.main");
const CONNECTOR = rehearsal ? "nixl" : "p2p-nccl";
const TINY = rehearsal ? o.models : `${o.models}/tiny`;
const FLAGS = rehearsal
  ? [
      "--dtype",
      "float32",
      "--enforce-eager",
      "--max-model-len",
      "512",
      "--block-size",
      "32",
      "--kv-cache-memory-bytes",
      "64M",
      "--distributed-executor-backend",
      "uni",
    ]
  : ["--dtype", "bfloat16", "--max-model-len", "4096", "--attention-backend", "FLASH_ATTN"];
const LENGTHS = rehearsal
  ? [1, 2, 31, 32, 33, 100, 200, 400]
  : [1, 2, 15, 16, 17, 100, 257, 500, 1000, 1023, 1500, 2000];
const PROMPTS = Array.from({ length: 24 }, (_, index) => randomIds(index + 1, LENGTHS[index % LENGTHS.length]));
const report = { startedAt: new Date().toISOString(), connector: CONNECTOR, steps: {} };
// A step that is asked for alone brings along what it stands on.
const only = o.only?.split(",");
const OF_THE_PAIR = [
  "correct",
  "shapes",
  "doctor",
  "kv_moved_by_nccl",
  "cancelled_between_legs",
  "prefill_killed",
  "decode_killed",
  "decode_starved",
];
if (only?.some((name) => OF_THE_PAIR.includes(name))) only.push("start");
if (only?.includes("correct")) only.push("reference");

/** `work` returns what is reported of the step, `ok: false` where what it saw is not what it must see. */
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
  const lines = Object.entries(report.steps).map(
    ([name, entry]) =>
      `## ${name}: ${entry.ok ? "done" : "FAILED"} (${entry.seconds} s)\n\n\`\`\`json\n${JSON.stringify(entry, null, 2)}\n\`\`\`\n`,
  );
  writeFileSync(`${OUT}/report.md`, `# GPU run of ${report.startedAt}, ${CONNECTOR}\n\n${lines.join("\n")}`);
}

/** A vLLM alone, by hand: what answers are compared with, and the controls that must fail. */
async function bare(name, flags, env = {}) {
  const port = await freePort();
  const words = VLLM.split(" ");
  const server = start(
    words[0],
    [
      ...words.slice(1),
      "serve",
      TINY,
      "--served-model-name",
      "m",
      "--host",
      "127.0.0.1",
      "--port",
      String(port),
      ...FLAGS,
      ...flags,
    ],
    `${OUT}/${name}.log`,
    env,
  );
  const url = `http://127.0.0.1:${port}`;
  await until(name, async () => (await fetch(`${url}/health`)).status === 200, 600_000, server);
  return { ...server, url, port };
}

/** `tandem up`, ready: every instance takes legs. */
async function up(name, model, flags, engineFlags, limitMs = 900_000) {
  const [port, grpc] = [await freePort(), await freePort()];
  const server = tandem(
    [
      "up",
      "--port",
      String(port),
      "--grpc-port",
      String(grpc),
      "--state.dir",
      `${OUT}/${name}`,
      "--verbose",
      ...flags,
      "--vllm.command",
      VLLM,
      "--model",
      model,
      "--served_name",
      "m",
      "--",
      ...engineFlags,
    ],
    `${OUT}/${name}.log`,
    { TANDEM_TOKEN: TOKEN, TANDEM_LOG_LEVEL: "debug" },
  );
  const url = `http://127.0.0.1:${port}`;
  const serving = async () =>
    (await instances(url, TOKEN)).every(({ eligible }) => eligible === true) &&
    (await instances(url, TOKEN)).length >= 2;
  await until(`${name} serves`, serving, limitMs, server);
  return { ...server, url, serving };
}

const UP = ["--engine", "vllm", "--connector", CONNECTOR];
const PAIR = rehearsal ? [] : ["--gpus", "0,1"];
const engineOf = (instance) => below(instance.info.pid).filter(({ args }) => !args.startsWith("/bin/sh"));
/** What computes: vLLM's engine core names itself; its compilers and trackers, which come after it, don't matter. */
const coreOf = (instance) => {
  const family = engineOf(instance);
  return (family.find(({ args }) => args.includes("EngineCore")) ?? family.at(-1)).pid;
};
const cores = async () =>
  Object.fromEntries((await instances(pair.url, TOKEN)).map((one) => [one.info.role, coreOf(one)]));
const answers = async (limitMs) => {
  await until(
    "it serves again",
    async () =>
      (await pair.serving()) &&
      (await post(pair.url, "/v1/completions", { model: "m", prompt: "hello", max_tokens: 2 })).status === 200,
    limitMs,
    pair,
  );
};
const tally = (words) => words.reduce((counts, word) => ({ ...counts, [word]: (counts[word] ?? 0) + 1 }), {});
/** Bytes that a GPU's links have sent since the driver was loaded; undefined where nobody tells. */
function linkBytes() {
  try {
    const said = execFileSync("nvidia-smi", ["nvlink", "-gt", "d", "-i", "0"], { encoding: "utf8" });
    return [...said.matchAll(/Tx: (\d+) KiB/g)].reduce((sum, [, kib]) => sum + Number(kib) * 1024, 0);
  } catch {
    return undefined;
  }
}

await step("versions", async () => ({
  node: process.version,
  gpus: withoutGpu
    ? "none"
    : execFileSync("nvidia-smi", ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"], {
        encoding: "utf8",
      })
        .trim()
        .split("\n"),
  links: withoutGpu ? "" : execFileSync("nvidia-smi", ["topo", "-m"], { encoding: "utf8" }).slice(0, 800),
}));

// A first token further off than this is not noise: 0.12 was the most where all was well, 0.27 the least where it wasn't.
const TOLERANCE = 0.2;
let reference;
let noise;
await step("reference", async () => {
  const plain = await bare(
    "aggregated",
    ["--enforce-eager", ...(rehearsal ? [] : ["--gpu-memory-utilization", "0.6"])],
    { CUDA_VISIBLE_DEVICES: "0" },
  );
  try {
    reference = await eachOf(PROMPTS, 1, (prompt) => firstToken(plain.url, "m", prompt));
    noise = compare(await eachOf(PROMPTS, 24, (prompt) => firstToken(plain.url, "m", prompt)), reference);
    return { noise };
  } finally {
    await plain.stop();
  }
});

let pair;
await step("start", async () => {
  pair = await up("pair", TINY, [...UP, ...PAIR], FLAGS);
  return {
    lines: tail(pair.log, 400)
      .split("\n")
      .filter((line) => /ready/.test(line))
      .map((line) => line.slice(0, 200)),
  };
});
if (pair !== undefined) {
  await step("correct", async () => {
    const sentBefore = linkBytes();
    const alone = compare(await eachOf(PROMPTS, 1, (prompt) => firstToken(pair.url, "m", prompt)), reference);
    const together = compare(await eachOf(PROMPTS, 24, (prompt) => firstToken(pair.url, "m", prompt)), reference);
    // The same prompts again: what prefill has cached must reach decode as well.
    const again = compare(await eachOf(PROMPTS, 24, (prompt) => firstToken(pair.url, "m", prompt)), reference);
    const worst = Math.max(alone.max, together.max, again.max);
    return {
      ok: worst <= TOLERANCE,
      worst,
      noise: noise.max,
      withinNoise: worst <= noise.max,
      alone,
      together,
      again,
      linkBytes: linkBytes() - sentBefore || undefined,
    };
  });
  await step("shapes", async () => {
    const chat = await json(
      await post(pair.url, "/v1/chat/completions", {
        model: "m",
        messages: [{ role: "user", content: "hello" }],
        max_tokens: 8,
      }),
    ).catch((error) => String(error));
    const stream = await (
      await post(pair.url, "/v1/completions", { model: "m", prompt: "hello", max_tokens: 8, stream: true })
    ).text();
    const several = await json(
      await post(pair.url, "/v1/completions", {
        model: "m",
        prompt: ["one", "two"],
        n: 2,
        temperature: 1,
        max_tokens: 4,
      }),
    );
    const seen = {
      chat: chat.choices?.[0]?.finish_reason ?? chat,
      streamEnds: stream.endsWith("data: [DONE]\n\n"),
      choices: several.choices.length,
    };
    return { ok: /^(stop|length)$/.test(seen.chat) && seen.streamEnds && seen.choices === 4, ...seen };
  });
  await step("doctor", async () => {
    const found = await doctor(pair.url, TOKEN, `${OUT}/doctor.json`);
    const canaries = found.filter(({ finding }) => finding.check === "canary").map(({ finding }) => finding.message);
    return {
      ok: canaries.length > 0 && !found.some(({ finding }) => /ERROR/.test(finding.level)),
      bad: found.filter(({ finding }) => /ERROR|WARNING/.test(finding.level)).map(({ finding }) => finding),
      canaries,
    };
  });
  if (!rehearsal) {
    await step("kv_moved_by_nccl", async () => {
      const log = readFileSync(pair.log, "utf8")
        .split("\n")
        .filter((line) => /ncclCommInitRank|P2pNcclEngine init|NCCL INFO/.test(line));
      return {
        ok: log.some((line) => line.includes("ncclCommInitRank Success")),
        lines: log.length,
        sample: log.slice(0, 5).map((line) => line.slice(0, 300)),
      };
    });
  }
  await step("cancelled_between_legs", async () => {
    const before = await cores();
    await Promise.all(
      Array.from({ length: 40 }, async (_, index) => {
        const gone = new AbortController();
        setTimeout(() => gone.abort(), index * 10);
        await post(
          pair.url,
          "/v1/completions",
          { model: "m", prompt: randomIds(5_000 + index, LENGTHS.at(-1)), max_tokens: 200 },
          gone.signal,
        )
          .then((answer) => answer.text())
          .catch(() => {});
      }),
    );
    const goneMs = performance.now();
    const empty = async () =>
      (await instances(pair.url, TOKEN)).every(
        ({ load, legs }) => (load.kvOrphans ?? 0) === 0 && (load.running ?? 0) === 0 && (legs ?? 0) === 0,
      );
    await until("no orphan is left", empty, 60_000);
    const settledMs = Math.round(performance.now() - goneMs);
    const after = await cores();
    await answers(60_000);
    return {
      ok: JSON.stringify(after) === JSON.stringify(before),
      settledMs,
      cores: { before, after },
      loads: (await instances(pair.url, TOKEN)).map(({ info, load }) => [info.role, load]),
    };
  });
  for (const role of ["PREFILL", "DECODE"]) {
    await step(`${role.toLowerCase()}_killed`, async () => {
      const victim = (await instances(pair.url, TOKEN)).find(({ info }) => info.role.endsWith(role));
      const core = coreOf(victim);
      const began = Array.from({ length: 8 }, async (_, index) => {
        const answer = await post(pair.url, "/v1/completions", {
          model: "m",
          prompt: randomIds(9_000 + index, LENGTHS.at(-1)),
          max_tokens: 400,
          ignore_eos: true,
          stream: true,
        }).catch(String);
        return answer;
      });
      // Decode is hurt while it writes; prefill as soon as the requests are on their way.
      if (role === "DECODE") await Promise.race(began);
      const killedMs = performance.now();
      process.kill(core, "SIGKILL");
      const ends = await Promise.all(
        began.map(async (one) => {
          const answer = await one;
          const text = typeof answer === "string" ? answer : await answer.text().catch(String);
          const how =
            answer.status !== 200
              ? `status ${answer.status}`
              : /"error":\{/.test(text)
                ? "error event"
                : text.endsWith("data: [DONE]\n\n")
                  ? "answer"
                  : "BROKEN";
          return { how, ms: performance.now() - killedMs };
        }),
      );
      await answers(600_000);
      const ms = ends
        .filter(({ how }) => how !== "answer")
        .map(({ ms: one }) => Math.round(one))
        .sort((a, b) => a - b);
      return {
        ok: !ends.some(({ how }) => how === "BROKEN"),
        ends: tally(ends.map(({ how }) => how)),
        brokenEndedMs: ms,
        allEndedMs: Math.round(Math.max(...ends.map(({ ms: one }) => one))),
        servesAgainMs: Math.round(performance.now() - killedMs),
        core: { before: core, after: (await cores())[victim.info.role] },
      };
    });
  }
  if (!rehearsal) {
    // A leg whose KV never comes, behind Tandem's back: the engine waits for it for ever, and everybody with it.
    await step("decode_starved", async () => {
      const victim = (await instances(pair.url, TOKEN)).find(({ info }) => info.role.endsWith("DECODE"));
      const port = engineOf(victim)
        .map(({ args }) => /--port (\d+)/.exec(args)?.[1])
        .find((found) => found !== undefined);
      const id = `___prefill_addr_127.0.0.1:9___decode_addr_${victim.info.kvAddress}_${"0".repeat(32)}`;
      void fetch(`http://127.0.0.1:${port}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json", "x-request-id": id },
        body: JSON.stringify({ model: "m", prompt: randomIds(1, 300), max_tokens: 4 }),
      }).catch(() => {});
      await new Promise((done) => setTimeout(done, 1_000));
      const core = coreOf(victim);
      const starvedMs = performance.now();
      const ends = await eachOf(
        Array.from({ length: 8 }, (_, index) => randomIds(20_000 + index, 500)),
        8,
        async (prompt) => {
          const { status } = await post(pair.url, "/v1/completions", { model: "m", prompt, max_tokens: 50 });
          return { status, ms: performance.now() - starvedMs };
        },
      );
      await answers(600_000);
      const after = (await cores())[victim.info.role];
      return {
        ok: after !== core,
        statuses: tally(ends.map(({ status }) => status)),
        allEndedMs: Math.round(Math.max(...ends.map(({ ms }) => ms))),
        servesAgainMs: Math.round(performance.now() - starvedMs),
        core: { before: core, after },
      };
    });
  }
  await pair.stop();
}

// Controls: the doctor must find both. Started by hand, since the launcher refuses them.
if (!rehearsal) {
  const p2p = (role, kvPort, port) => [
    "--kv-transfer-config",
    JSON.stringify({
      kv_connector: "P2pNcclConnector",
      kv_role: role,
      kv_buffer_size: role === "kv_producer" ? "1e1" : "8e9",
      kv_port: String(kvPort),
      kv_connector_extra_config: {
        send_type: "PUT_ASYNC",
        nccl_num_channels: "16",
        mem_pool_size_gb: 4,
        http_port: String(port),
      },
    }),
  ];
  const ENV = { VLLM_HOST_IP: "127.0.0.1", VLLM_DISABLE_REQUEST_ID_RANDOMIZATION: "1" };
  const control = (name, decodeFlags) =>
    step(name, async () => {
      const [pPort, dPort] = [await freePort(), await freePort()];
      const prefill = await bare(
        `${name}-prefill`,
        [
          "--enforce-eager",
          "--no-enable-chunked-prefill",
          "--gpu-memory-utilization",
          "0.6",
          ...p2p("kv_producer", pPort, 1),
        ],
        { ...ENV, CUDA_VISIBLE_DEVICES: "0" },
      );
      const decode = await bare(
        `${name}-decode`,
        ["--gpu-memory-utilization", "0.6", ...decodeFlags, ...p2p("kv_consumer", dPort, 2)],
        { ...ENV, CUDA_VISIBLE_DEVICES: "1" },
      );
      const [rest, grpc] = [await freePort(), await freePort()];
      const wrap = (role, engine, kvPort) =>
        tandem(
          [
            role,
            "--grpc.listen",
            "127.0.0.1:0",
            "--registry.address",
            `127.0.0.1:${grpc}`,
            "--engine.attach",
            engine.url,
            "--connector",
            "p2p-nccl",
            "--engine.kv_address",
            `127.0.0.1:${kvPort}`,
          ],
          `${OUT}/${name}-${role}-wrapper.log`,
          { TANDEM_TOKEN: TOKEN },
        );
      const router = tandem(
        ["router", "--rest.listen", `127.0.0.1:${rest}`, "--grpc.listen", `127.0.0.1:${grpc}`],
        `${OUT}/${name}-router.log`,
        { TANDEM_TOKEN: TOKEN },
      );
      const all = [router, wrap("prefill", prefill, pPort), wrap("decode", decode, dPort)];
      const url = `http://127.0.0.1:${rest}`;
      try {
        await until("both are known", async () => (await instances(url, TOKEN)).length === 2, 120_000);
        const found = (await doctor(url, TOKEN, `${OUT}/${name}-doctor.json`)).filter(
          ({ finding }) => finding.check === "canary",
        );
        const served = (await post(url, "/v1/completions", { model: "m", prompt: randomIds(1, 500), max_tokens: 1 }))
          .status;
        const foundByDoctor = found.some(({ finding }) => /ERROR/.test(finding.level));
        return {
          ok: foundByDoctor && served !== 200,
          foundByDoctor,
          findings: found.map(({ finding }) => finding.message),
          servedStatus: served,
        };
      } finally {
        for (const one of [...all, prefill, decode]) await one.stop();
      }
    });
  await control("control_default_graphs", []);
  await control("control_other_weights", ["--enforce-eager", "--load-format", "dummy"]);

  const LLAMA = `${o.models}/llama8b`;
  const big = ["--load-format", "dummy", "--max-model-len", "8192", "--attention-backend", "FLASH_ATTN"];
  for (const [name, decodeFlag] of [
    ["load_piecewise", undefined],
    ["load_eager", "--enforce-eager"],
  ]) {
    await step(name, async () => {
      const server = await up(
        name,
        LLAMA,
        [...UP, ...PAIR, ...(decodeFlag === undefined ? [] : [`--engine.flag=decode:${decodeFlag}`])],
        big,
      );
      try {
        const rates = [];
        for (const rate of [2, 4, 8])
          rates.push(await load(server.url, "m", { rate, count: rate * 15, promptTokens: 2_000, maxTokens: 150 }));
        // More KV than decode's buffer on the GPU and its pool hold together, all at once: refused, answered or found and
        // started again, but never an engine that stands still.
        const burst = await eachOf(
          Array.from({ length: 96 }, (_, index) => randomIds(20_000 + index, 2_000)),
          96,
          async (prompt) => (await post(server.url, "/v1/completions", { model: "m", prompt, max_tokens: 50 })).status,
        );
        const burstMs = performance.now();
        await until(
          "it serves",
          async () =>
            (await post(server.url, "/v1/completions", { model: "m", prompt: "hello", max_tokens: 2 })).status === 200,
          300_000,
          server,
        );
        return {
          ok: rates.every(({ failed }) => failed === 0),
          rates,
          burst: { statuses: tally(burst), servesAfterMs: Math.round(performance.now() - burstMs) },
        };
      } finally {
        await server.stop();
      }
    });
  }
}
writeReport();
console.log(`report: ${OUT}/report.md`);
process.exit(Object.values(report.steps).every(({ ok }) => ok) ? 0 : 1);
