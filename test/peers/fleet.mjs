// What takes part: engines that pass for vLLM 0.23 (services/tiny-engine/stand-in.ts), two for prefill and two for decode,
// and one contender in front of them, at its defaults.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createWriteStream, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { createServer } from "node:net";
import { homedir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { processTree, commandLine } from "../../dist/clients/loadgen/procfs.js";
import { failEngine, stateOf } from "../../dist/clients/chaos/engine.js";
import { atOnce } from "./clients.mjs";

const ROOT = new URL("../../", import.meta.url);
const STAND_IN = fileURLToPath(new URL("dist/services/tiny-engine/stand-in.js", ROOT));
const TANDEM = fileURLToPath(new URL("dist/clients/cli/main.js", ROOT));
const VENV = join(homedir(), ".cache/tandem/peers");
const PACKAGES = { "vllm-router": "0.1.17", smg: "1.13.0" };
/** A prompt takes 0.15 s, and four at once 0.6 s. */
const PACE = ["--inject", "--sim-prefill-ms", "1", "--sim-decode-ms", "10"];
/** In which a launched engine loads. */
const LOAD_S = 2;
const READY_LIMIT_MS = 90_000;
const HOST = "127.0.0.1";
export const MODEL = "m";

/** What was started and has not ended. */
const running = new Set();
process.once("exit", () => [...running].flatMap(processTree).forEach(stop));

/** How each contender is started, as its own documentation says; `engines` is their connector, undefined if it starts them. */
export const CONTENDERS = {
  "vllm-router-p2p": {
    engines: "p2p-nccl",
    package: "vllm-router",
    command: ({ port, pingPort, metricsPort }) => [
      join(VENV, "bin/vllm-router"),
      ...["--vllm-pd-disaggregation", "--vllm-discovery-address", `${HOST}:${pingPort}`],
      ...["--host", HOST, "--port", port, "--prometheus-port", metricsPort],
    ],
  },
  "vllm-router-nixl": {
    engines: "nixl",
    package: "vllm-router",
    command: ({ port, metricsPort, engines }) => [
      join(VENV, "bin/vllm-router"),
      ...["--vllm-pd-disaggregation", "--host", HOST, "--port", port, "--prometheus-port", metricsPort],
      ...engines.flatMap(({ role, url }) => [`--${role}`, url]),
    ],
  },
  // Over HTTP it sends every request to both engines and hands over no KV, so each computes all of it.
  smg: {
    engines: "none",
    package: "smg",
    command: ({ port, metricsPort, engines }) => [
      ...[join(VENV, "bin/smg"), "launch", "--pd-disaggregation", "--host", HOST, "--port", port],
      ...["--prometheus-port", metricsPort],
      ...engines.flatMap(({ role, url }) => [`--${role}`, url]),
    ],
  },
  "tandem-p2p": { engines: "p2p-nccl", command: (o) => up(o, "p2p-nccl", attached(o, true)) },
  "tandem-nixl": { engines: "nixl", command: (o) => up(o, "nixl", attached(o, false)) },
  "tandem-launched": {
    command: (o) =>
      up(o, "p2p-nccl", [
        ...["--prefill", 2, "--decode", 2, "--engine", "vllm", "--model", MODEL],
        ...["--vllm.command", o.program, "--", ...PACE],
      ]),
  },
};

function up({ port, grpcPort }, connector, more) {
  return [process.execPath, TANDEM, "up", "--port", port, "--grpc-port", grpcPort, "--connector", connector, ...more];
}

function attached({ engines }, withKv) {
  return engines.flatMap(({ role, url, kv }) => [
    `--attach-${role}`,
    url,
    ...(withKv ? [`--attach.${role}_kv`, kv] : []),
  ]);
}

/** Installs the rivals where they are missing. @returns Why one can't take part, by its package. */
export async function install(names) {
  const reasons = {};
  for (const name of new Set(names.map((one) => CONTENDERS[one].package))) {
    if (name === undefined || existsSync(join(VENV, "bin", name))) continue;
    const commands = [
      ...(existsSync(join(VENV, "bin/pip")) ? [] : [["python3", "-m", "venv", VENV]]),
      [join(VENV, "bin/pip"), "install", "--quiet", `${name}==${PACKAGES[name]}`],
    ];
    for (const [program, ...args] of commands) {
      const child = spawn(program, args, { stdio: ["ignore", "inherit", "inherit"] });
      const [code] = await once(child, "close").catch((error) => [error.message]);
      if (code !== 0) reasons[name] ??= `${program} ${args.join(" ")}: ${code}`;
    }
  }
  return reasons;
}

export async function freePort() {
  const server = createServer().listen(0, HOST);
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** A contender over fresh engines, once all of eight requests are answered, twice. `folder` keeps the logs. */
export async function startFleet(name, folder) {
  mkdirSync(folder, { recursive: true });
  const { engines: connector, command } = CONTENDERS[name];
  const env = { ...process.env, TMPDIR: folder, XDG_STATE_HOME: folder };
  const run = ([program, ...args], file, more = {}) => {
    const child = spawn(program, args.map(String), {
      detached: true,
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...env, ...more },
    });
    running.add(child.pid);
    child.once("exit", () => running.delete(child.pid));
    const log = createWriteStream(join(folder, file), { flags: "a" });
    child.stdout.pipe(log, { end: false });
    child.stderr.pipe(log, { end: false });
    return child;
  };
  const ports = { port: 0, grpcPort: 0, pingPort: 0, metricsPort: 0 };
  for (const one of Object.keys(ports)) ports[one] = await freePort();
  const { port, pingPort } = ports;
  const startEngine = (engine) => {
    const { role, index, args, kvPort } = engine;
    const child = run([process.execPath, STAND_IN, ...args], `${role}-${index}.log`, {
      VLLM_HOST_IP: HOST,
      VLLM_NIXL_SIDE_CHANNEL_PORT: String(kvPort),
      VLLM_DISABLE_REQUEST_ID_RANDOMIZATION: "1",
    });
    engine.pid = child.pid;
  };
  const own = [];
  if (connector !== undefined)
    for (const role of ["prefill", "decode"])
      for (const index of [0, 1]) {
        const [httpPort, kvPort] = [await freePort(), await freePort()];
        const args = engineArgs({
          role,
          connector,
          httpPort,
          kvPort,
          pingPort: name === "vllm-router-p2p" && pingPort,
        });
        own.push({ role, index, args, kvPort, url: `http://${HOST}:${httpPort}`, kv: `${HOST}:${kvPort}` });
        startEngine(own.at(-1));
      }
  const program = join(folder, "vllm");
  writeFileSync(
    program,
    `#!/bin/sh\n[ "$1" != serve ] || sleep ${LOAD_S}\nexec "${process.execPath}" "${STAND_IN}" "$@"\n`,
    { mode: 0o755 },
  );
  const url = `http://${HOST}:${port}`;
  const fleet = {
    name,
    url,
    /** Those that run: prefill first. A launched engine may have been started again, as another process. */
    engines: () => (connector === undefined ? enginesUnder(contender.pid) : own.filter(({ pid }) => pid !== undefined)),
    kill(engine, signal = "SIGKILL") {
      process.kill(engine.pid, signal);
      if (signal === "SIGKILL") engine.pid = undefined;
    },
    /** Those that were killed, as their operator would. */
    restart: () => own.filter(({ pid }) => pid === undefined).map(startEngine),
    fail: (engine, fault) => failEngine(engine, fault),
    heal: healEngine,
    states: () => Promise.all(fleet.engines().map(stateOf)),
    async stop() {
      if (name.startsWith("tandem")) contender.kill("SIGINT");
      for (let waits = 0; waits < 50 && name.startsWith("tandem") && contender.exitCode === null; waits++)
        await sleep(100);
      for (const pid of [...processTree(contender.pid), ...own.map(({ pid }) => pid)]) stop(pid);
    },
  };
  const answers = (engine) =>
    fetch(`${engine.url}/health`).then(
      ({ ok }) => ok,
      () => false,
    );
  const deadlineMs = Date.now() + READY_LIMIT_MS;
  const until = async (what, holds) => {
    while (!(await holds())) {
      if (Date.now() > deadlineMs)
        throw new Error(`${name}: ${what}: not within ${READY_LIMIT_MS / 1000} s; see ${folder}`);
      await sleep(200);
    }
  };
  let contender = { pid: undefined, kill() {}, exitCode: 0 };
  try {
    await until("engines", async () => (await Promise.all(own.map(answers))).every(Boolean));
    contender = run(command({ ...ports, engines: own, program }).map(String), "contender.log");
    await until("a contender that knows its engines", async () => {
      if (!name.startsWith("tandem")) return true;
      const metrics = await fetch(`${url}/metrics`).then(
        (answer) => answer.text(),
        () => "",
      );
      return metrics.match(/tandem_pool_instances\{role="\w+",state="serving"\} 2/g)?.length === 2;
    });
    for (const turn of ["first", "second"])
      await until(`answers to the ${turn} eight`, async () => {
        const all = await Promise.all(atOnce(url, 8, { limitMs: 10_000 }).map((call) => call.ended));
        return all.every(({ outcome }) => outcome === "ok");
      });
  } catch (error) {
    await fleet.stop();
    throw error;
  }
  return fleet;
}

async function healEngine({ url }) {
  const at = URL.canParse(url) ? { host: HOST, port: new URL(url).port } : { socketPath: url };
  const call = request({ ...at, path: "/sim/fault", method: "DELETE", agent: false }).end();
  const [answer] = await once(call, "response");
  answer.resume();
}

function engineArgs({ role, connector, httpPort, kvPort, pingPort }) {
  const transfer = {
    kv_connector: connector === "nixl" ? "NixlConnector" : "P2pNcclConnector",
    kv_role: role === "prefill" ? "kv_producer" : "kv_consumer",
    kv_port: String(kvPort),
    kv_connector_extra_config: {
      http_port: String(httpPort),
      ...(pingPort ? { proxy_ip: HOST, proxy_port: String(pingPort) } : {}),
    },
  };
  return [
    ...["serve", MODEL, "--served-model-name", MODEL, "--host", HOST, "--port", httpPort, "--enforce-eager", ...PACE],
    ...(connector === "none" ? [] : ["--kv-transfer-config", JSON.stringify(transfer)]),
  ];
}

function enginesUnder(root) {
  const found = processTree(root).flatMap((pid) => {
    const args = commandLine(pid);
    if (args[1] !== STAND_IN || args[2] !== "serve") return [];
    const role = args.some((one) => one.includes("kv_producer")) ? "prefill" : "decode";
    return [{ pid, role, url: args[args.indexOf("--uds") + 1] }];
  });
  return ["prefill", "decode"].flatMap((role) => found.filter((one) => one.role === role));
}

function stop(pid) {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended.
  }
}
