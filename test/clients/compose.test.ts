// compose.yaml without containers: every command and health check of it, run on loopback as its container would.
import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { load, YAML11_SCHEMA } from "js-yaml";
import { startConsul } from "../support/consul.ts";
import { skip } from "../support/skip.ts";
import { consul } from "../support/tools.ts";
import { eventually, freePort } from "../support/waits.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const CLI = join(ROOT, "dist/clients/cli/main.js");

interface Service {
  readonly command: string[];
  readonly entrypoint?: string[];
  readonly environment?: Record<string, string>;
  readonly healthcheck?: { readonly test: string[] };
  readonly ports?: string[];
  readonly profiles?: string[];
}

/** With the merge keys (`<<`) of YAML 1.1, which Compose knows. */
function compose(): Record<string, Service> {
  return (
    load(readFileSync(join(ROOT, "compose.yaml"), "utf8"), { schema: YAML11_SCHEMA }) as {
      services: Record<string, Service>;
    }
  ).services;
}

/** HEALTHCHECK and ENTRYPOINT of the Dockerfile, for services that have no own. */
function imageDefault(instruction: "ENTRYPOINT" | "CMD"): string[] {
  const text = readFileSync(join(ROOT, "Dockerfile"), "utf8");
  const found =
    instruction === "ENTRYPOINT" ? /^ENTRYPOINT (\[.*\])$/m.exec(text) : /^HEALTHCHECK [^[]*CMD (\[.*\])$/m.exec(text);
  return JSON.parse(found![1]!) as string[];
}

describe("compose.yaml", () => {
  it("publishes ports on loopback only, and starts nothing without a join token", () => {
    for (const [name, service] of Object.entries(compose())) {
      for (const port of service.ports ?? []) assert.match(port, /^127\.0\.0\.1:/, name);
      if (name !== "consul") assert.match(service.environment!["TANDEM_TOKEN"]!, /^\$\{TANDEM_TOKEN:\?/, name);
    }
  });

  it("registers everything in Consul, under addresses that others can dial", () => {
    for (const [name, service] of Object.entries(compose())) {
      if (name === "consul") continue;
      assert.deepEqual(
        [service.environment!["TANDEM_REGISTRY_KIND"], service.environment!["CONSUL_HTTP_ADDR"]],
        ["consul", "consul:8500"],
        name,
      );
      assert.match(service.command[0]!, /--grpc\.advertise "\$\$self:\d+"/, name);
    }
  });

  it("gives each vLLM instance a GPU of its own, and none when all are taken", async function () {
    if (process.platform !== "linux") skip(this, "needs flock");
    const [script, role] = compose()["decode-gpu"]!.command as [string, string];
    assert.equal(role, "decode");
    const folder = mkdtempSync(join(tmpdir(), "tandem-gpus-"));
    try {
      // A machine with two GPUs, whose instance says which it got and stays.
      writeFileSync(join(folder, "nvidia-smi"), "#!/bin/sh\necho GPU 0\necho GPU 1\n", { mode: 0o755 });
      const local = script
        .replaceAll("$$", "$")
        .replaceAll("$(hostname -i)", "127.0.0.1")
        .replaceAll("/gpus/", `${folder}/`)
        .replace(/exec node \S+ "\$0" --gpus "\$gpu" [\s\S]*$/, 'echo "$0 on $gpu"; exec cat');
      const start = (): ChildProcess =>
        spawn("/bin/sh", ["-euc", local, role], {
          stdio: ["pipe", "pipe", "pipe"],
          env: { PATH: `${folder}:${process.env["PATH"]}` },
        });
      const first = start();
      assert.equal(String((await once(first.stdout!, "data"))[0]), "decode on 0\n");
      const second = start();
      assert.equal(String((await once(second.stdout!, "data"))[0]), "decode on 1\n");
      assert.deepEqual(await once(start(), "exit"), [1, null], "all are taken");
      const gone = once(first, "exit");
      first.stdin!.end();
      await gone;
      const next = start();
      assert.equal(String((await once(next.stdout!, "data"))[0]), "decode on 0\n");
      for (const child of [second, next]) child.stdin!.end();
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  it("runs a router and instances that answer a request, all healthy, and end at SIGTERM", async function () {
    this.timeout(60_000);
    const ports = {
      rest: await freePort(),
      grpc: await freePort(),
      prefill: await freePort(),
      decode: await freePort(),
    };
    const folder = mkdtempSync(join(tmpdir(), "tandem-compose-"));
    // Without Consul the router's own registry stands in for it.
    const agent = "missing" in (await consul()) ? undefined : await startConsul();
    const registry =
      agent === undefined
        ? { TANDEM_REGISTRY_ADDRESS: `127.0.0.1:${ports.grpc}` }
        : { TANDEM_REGISTRY_KIND: "consul", CONSUL_HTTP_ADDR: agent.address };
    const env = {
      ...process.env,
      ...registry,
      TANDEM_TOKEN: "token-of-the-test",
      TANDEM_API_KEY: "",
      TANDEM_ENGINE_KIND: "sim",
      OPENAI_API_KEY: "",
      XDG_STATE_HOME: folder,
    };
    /** A line of the file as it stands on this machine: our build, loopback, free ports. */
    const local = (service: "router" | "prefill" | "decode", text: string): string =>
      text
        .replaceAll("$$", "$")
        .replaceAll("/app/dist/clients/cli/main.js", CLI)
        .replaceAll("$(hostname -i)", "127.0.0.1")
        .replaceAll("0.0.0.0", "127.0.0.1")
        .replaceAll(":3000", `:${ports.rest}`)
        .replaceAll(":3001", `:${ports.grpc}`)
        .replaceAll(":3101", `:${service === "router" ? 0 : ports[service]}`);
    const run = (service: "router" | "prefill" | "decode", words: readonly string[]): ChildProcess => {
      const [command, ...argv] = words.map((word) => local(service, word));
      return spawn(command === "node" ? process.execPath : command!, argv, { env, stdio: ["ignore", "pipe", "pipe"] });
    };
    const services = compose();
    const names = ["router", "prefill", "decode"] as const;
    const processes = names.map((name) =>
      run(name, [...(services[name]!.entrypoint ?? imageDefault("ENTRYPOINT")), ...services[name]!.command]),
    );
    let said = "";
    for (const child of processes)
      for (const stream of [child.stdout!, child.stderr!])
        stream.on("data", (text: Buffer) => (said += text.toString()));
    try {
      // A check is a process: asked only once there is something to find.
      await eventually(
        "the instances say that they are ready",
        () => /prefill ready on/.test(said) && /decode ready on/.test(said),
        30_000,
      );
      await eventually(
        "every health check passes",
        async () => {
          const checks = names.map((name) =>
            run(name, services[name]!.healthcheck?.test.slice(1) ?? imageDefault("CMD")),
          );
          const codes = await Promise.all(checks.map(async (check) => (await once(check, "exit"))[0] as number));
          return codes.every((code) => code === 0);
        },
        30_000,
      );
      const answer = await fetch(`http://127.0.0.1:${ports.rest}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ model: "tandem-sim", prompt: "Hello", max_tokens: 8 }),
      });
      assert.equal(answer.status, 200, said);
    } finally {
      const ends = processes.map(async (child) =>
        child.exitCode === null ? ((await once(child, "exit")) as [number | null]) : [child.exitCode],
      );
      for (const child of processes) child.kill("SIGTERM");
      const codes = (await Promise.all(ends)).map(([code]) => code);
      await agent?.kill();
      rmSync(folder, { recursive: true, force: true });
      assert.deepEqual(codes, [0, 0, 0], said);
    }
  });
});
