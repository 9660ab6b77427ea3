// P2P NCCL of vLLM 0.23 as Tandem starts it, over a program that passes for it: flags, pings, pairs, and what a dead
// decode engine does to its prefill.
import assert from "node:assert/strict";
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { FindingLevel, Role } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Instance } from "#gen/tandem/router/v1/router_pb.js";
import { tandemClient } from "../../clients/client/index.ts";
import { commandOf, familyOf } from "../live/support/processes.ts";
import { startTandem, type Tandem } from "../support/tandem.ts";
import { eventually, freePort } from "../support/waits.ts";

const STAND_IN = fileURLToPath(new URL("../../services/tiny-engine/stand-in.ts", import.meta.url));
const TSX = import.meta.resolve("tsx");
const CLI = fileURLToPath(new URL("../../dist/clients/cli/main.js", import.meta.url));

describe("vLLM with P2P NCCL, started by Tandem", function () {
  this.timeout(90_000);
  let folder: string;
  let program: string;
  let tandem: Tandem;

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), "tandem-fake-vllm-"));
    program = join(folder, "vllm");
    writeFileSync(program, `#!/bin/sh\nexec "${process.execPath}" --import="${TSX}" "${STAND_IN}" "$@"\n`);
    chmodSync(program, 0o755);
    tandem = await startTandem(
      [
        "--engine",
        "vllm",
        "--connector",
        "p2p-nccl",
        "--prefill",
        "2",
        "--model",
        "org/Fake-1B",
        "--vllm.command",
        program,
        "--",
        "--max-model-len",
        "4096",
      ],
      { TANDEM_STALL_MS: "20000", XDG_STATE_HOME: folder, TMPDIR: folder },
    );
    await eventually(
      "all serve",
      async () => (await instances()).every(({ eligible }) => eligible) && (await instances()).length === 3,
      60_000,
    );
  });
  after(async () => {
    await tandem?.[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true, force: true });
  });

  const router = () => tandemClient(tandem).router;
  const instances = async (): Promise<Instance[]> => (await router().listInstances({})).instances;
  const complete = async (extra: Record<string, unknown> = {}): Promise<Response> =>
    fetch(`${tandem.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        model: "org/Fake-1B",
        prompt: "What is disaggregated prefill?",
        max_tokens: 12,
        temperature: 0,
        ...extra,
      }),
    });

  it("serves, streamed or not, also several choices and prompts", async () => {
    const whole = (await (await complete()).json()) as { choices: { text: string }[] };
    assert.ok(whole.choices[0]!.text.length > 0);
    assert.match(await (await complete({ stream: true })).text(), /data: \[DONE\]\n\n$/);
    const several = (await (await complete({ n: 2, temperature: 1, prompt: ["One", "Two"] })).json()) as {
      choices: unknown[];
    };
    assert.equal(several.choices.length, 4);
  });

  it("knows each engine's KV address and facts from the engine itself", async () => {
    for (const { info } of await instances()) {
      assert.match(info!.kvAddress, /^127\.0\.0\.1:2[01]\d\d\d$/);
      assert.deepEqual([info!.dtype, info!.tpSize, info!.connector], ["bfloat16", 1, "p2p-nccl"]);
    }
    assert.doesNotMatch(tandem.output(), /did not ping|another KV address/);
  });

  it("passes the doctor, whose probes went through each pair", () => {
    const run = spawnSync(process.execPath, [CLI, "doctor", "--json", "--router", tandem.url], {
      env: { ...process.env, TANDEM_TOKEN: tandem.token },
      encoding: "utf8",
    });
    assert.equal(run.status, 0, run.stdout + run.stderr);
    const { diagnoses } = JSON.parse(run.stdout) as {
      diagnoses: { finding: { check: string; level: string; message: string } }[];
    };
    const bad = diagnoses.filter(({ finding }) => /ERROR|WARNING/.test(finding.level));
    assert.deepEqual(bad, []);
    assert.equal(
      diagnoses.filter(
        ({ finding }) => finding.check === "probe" && finding.level.endsWith(FindingLevel[FindingLevel.OK]!),
      ).length,
      2,
    );
  });

  it("starts prefill again when the decode engine it sends to dies, on fresh KV ports, and serves by itself", async () => {
    const before = new Map((await instances()).map(({ info }) => [info!.instanceId, info!.kvAddress]));
    const decode = (await instances()).find(({ info }) => info!.role === Role.DECODE)!;
    const group = familyOf(decode.info!.pid).filter(
      (pid) => commandOf(pid).includes(STAND_IN) && !commandOf(pid).startsWith("/bin/sh"),
    );
    const running = Array.from({ length: 8 }, () =>
      complete({ stream: true, max_tokens: 200, prompt: "x ".repeat(1_000) }),
    );
    await eventually("they run", async () => (await instances()).some(({ load }) => load!.running > 0));
    assert.ok(group.length > 0);
    for (const pid of group) process.kill(pid, "SIGKILL");
    for (const response of await Promise.all(running)) {
      const text = await response.text();
      assert.ok(response.status >= 500 || /"error":|data: \[DONE\]/.test(text), text.slice(-300));
    }
    await eventually("it is answered again", async () => (await complete()).status === 200, 60_000);
    const now = (await instances()).find(({ info }) => info!.instanceId === decode.info!.instanceId)!;
    assert.notEqual(now.info!.kvAddress, before.get(decode.info!.instanceId), "a fresh KV port");
    assert.equal(now.load!.kvOrphans, 0);
  });

  it("says why vLLM failed to start, and nothing else", () => {
    const run = spawnSync(
      process.execPath,
      [
        CLI,
        "decode",
        "--engine",
        "vllm",
        "--connector",
        "p2p-nccl",
        "--model",
        "m",
        "--vllm.command",
        program,
        "--registry.address=",
        "--grpc.listen",
        "127.0.0.1:0",
        "--",
        "--fail-at-start",
      ],
      { encoding: "utf8" },
    );
    assert.notEqual(run.status, 0);
    assert.match(
      run.stderr,
      /exited with code 1 before it was ready\. Its last output:\n {2}ValueError: No available memory for the cache blocks\.\n$/,
    );
    assert.doesNotMatch(run.stderr, /Traceback|See root cause/);
  });
});

describe("vLLM engines that ping", function () {
  this.timeout(60_000);

  it("are adopted as they come, serve, and are let go when they fall silent", async () => {
    const pings = await freePort();
    const engines: ChildProcess[] = [];
    const start = async (role: "kv_producer" | "kv_consumer"): Promise<ChildProcess> => {
      const [port, kvPort] = [await freePort(), await freePort()];
      const kv = {
        kv_connector: "P2pNcclConnector",
        kv_role: role,
        kv_port: String(kvPort),
        kv_connector_extra_config: { proxy_ip: "127.0.0.1", proxy_port: String(pings), http_port: String(port) },
      };
      const engine = spawn(
        process.execPath,
        [
          `--import=${TSX}`,
          STAND_IN,
          "serve",
          "m",
          "--served-model-name",
          "m",
          "--host",
          "127.0.0.1",
          "--port",
          String(port),
          "--enforce-eager",
          "--kv-transfer-config",
          JSON.stringify(kv),
        ],
        {
          stdio: "ignore",
          env: { ...process.env, VLLM_HOST_IP: "127.0.0.1", VLLM_DISABLE_REQUEST_ID_RANDOMIZATION: "1" },
        },
      );
      engines.push(engine);
      return engine;
    };
    try {
      const prefill = await start("kv_producer");
      await start("kv_consumer");
      // They may come before and after; vLLM's socket waits for who listens.
      await using tandem = await startTandem(["--discover", `127.0.0.1:${pings}`]);
      const instances = async (): Promise<Instance[]> =>
        (await tandemClient(tandem).router.listInstances({})).instances;
      await eventually(
        "both serve",
        async () => (await instances()).filter(({ eligible }) => eligible).length === 2,
        40_000,
      );
      await eventually("its command to paste names their model", () => /"model":"m"/.test(tandem.output()));
      const answer = await fetch(`${tandem.url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ model: "m", prompt: "Who is there?", max_tokens: 4 }),
      });
      assert.equal(answer.status, 200, await answer.text());
      prefill.kill("SIGKILL");
      await eventually("the silent one is gone", async () => (await instances()).length === 1, 30_000);
    } finally {
      for (const engine of engines) engine.kill("SIGKILL");
    }
  });
});
