// compose.yaml without containers: every command and health check of it, run as its container would, in a network where
// each process has an address of its own. test/live/compose.test.ts runs the file itself.
import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { parse } from "yaml";
import { VLLM_VERSION } from "../live/support/vllm.ts";
import { skip } from "../support/skip.ts";
import { CONSUL_VERSION, NODE_VERSIONS } from "../support/tools.ts";
import { eventually } from "../support/waits.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const CLI = join(ROOT, "dist/clients/cli/main.js");

interface Service {
  readonly image?: string;
  readonly command?: string[];
  readonly entrypoint?: string[];
  readonly environment?: Record<string, string>;
  readonly healthcheck?: { readonly test: string[] };
  readonly ports?: string[];
  readonly cap_drop?: string[];
  readonly security_opt?: string[];
  readonly read_only?: boolean;
  readonly pid?: string;
  readonly ipc?: string;
  readonly network_mode?: string;
}

/** With the merge keys (`<<`) of YAML 1.1, which Compose knows. */
function compose(): Record<string, Service> {
  const file = readFileSync(join(ROOT, "compose.yaml"), "utf8");
  return (parse(file, { merge: true }) as { services: Record<string, Service> }).services;
}

interface Network {
  /** What to put before a command that runs in it. */
  readonly enter: readonly string[];
  [Symbol.asyncDispose](): Promise<void>;
}

/** A network that no other process of this machine is in, where `addresses` are local; or why there is none. */
async function privateNetwork(addresses: readonly string[]): Promise<Network | { readonly missing: string }> {
  if (process.platform !== "linux") return { missing: "needs the network namespaces of Linux" };
  // Anyone may have one below a user namespace of their own, where the system allows that.
  const isRoot = process.getuid!() === 0;
  const setUp = ["ip link set lo up", ...addresses.map((address) => `ip address add ${address}/32 dev lo`)];
  const holder = spawn(
    "unshare",
    [...(isRoot ? [] : ["--map-root-user"]), "--net", "/bin/sh", "-ec", `${setUp.join("; ")}; echo up; exec cat`],
    { stdio: ["pipe", "pipe", "pipe"] },
  );
  let said = "";
  holder.stderr.on("data", (text: Buffer) => (said += text.toString()));
  const gone = new Promise<void>((resolve) => {
    holder.once("error", (error) => resolve(void (said += error.message))).once("close", () => resolve());
  });
  await Promise.race([once(holder.stdout, "data"), gone]);
  if (holder.exitCode !== null || holder.pid === undefined) return { missing: `no network namespace: ${said.trim()}` };
  return {
    enter: ["nsenter", `--target=${holder.pid}`, "--net", ...(isRoot ? [] : ["--user", "--preserve-credentials"])],
    async [Symbol.asyncDispose]() {
      holder.stdin.end();
      await gone;
    },
  };
}

describe("compose.yaml", () => {
  const tandems = Object.entries(compose()).filter(([, { command }]) =>
    command?.some((word) => word.includes("main.js")),
  );

  it("publishes ports on loopback only, and starts nothing without a join token", () => {
    for (const [name, { ports = [] }] of Object.entries(compose()))
      for (const port of ports) assert.match(port, /^127\.0\.0\.1:/, name);
    assert.deepEqual(
      tandems.map(([name]) => name),
      ["router", "prefill", "decode", "prefill-gpu", "decode-gpu"],
    );
    for (const [name, service] of tandems)
      assert.match(service.environment!["TANDEM_TOKEN"]!, /^\$\{TANDEM_TOKEN:\?/, name);
  });

  it("gives no container more rights than it needs, and shares none of the host's namespaces", () => {
    for (const [name, service] of Object.entries(compose())) {
      assert.deepEqual([service.cap_drop, service.security_opt], [["ALL"], ["no-new-privileges:true"]], name);
      assert.equal(service.read_only, !["prefill-gpu", "decode-gpu"].includes(name), name);
      for (const mode of [service.pid, service.ipc, service.network_mode]) assert.notEqual(mode, "host", name);
    }
  });

  it("registers everything in Consul, under addresses that others can dial", () => {
    for (const [name, service] of tandems) {
      assert.deepEqual(
        [service.environment!["TANDEM_REGISTRY_KIND"], service.environment!["CONSUL_HTTP_ADDR"]],
        ["consul", "consul:8500"],
        name,
      );
      assert.match(service.command![0]!, /--grpc\.advertise "\$\$self:\d+"/, name);
    }
  });

  it("has the Node, the vLLM and the Consul that tests run", () => {
    const dockerfile = readFileSync(join(ROOT, "Dockerfile"), "utf8");
    assert.equal(/^ARG NODE_IMAGE=\S+:([\d.]+)-\w+-slim$/m.exec(dockerfile)?.[1], NODE_VERSIONS[24]);
    assert.equal(/^ARG VLLM_IMAGE=\S+:v(\S+)$/m.exec(dockerfile)?.[1], VLLM_VERSION);
    assert.equal(`v${compose()["consul"]!.image!.split(":")[1]}`, CONSUL_VERSION);
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
    const addresses = { router: "10.77.0.2", prefill: "10.77.0.3", decode: "10.77.0.4" } as const;
    const names = ["router", "prefill", "decode"] as const;
    const found = await privateNetwork(Object.values(addresses));
    if ("missing" in found) return skip(this, found.missing);
    await using network = found;
    const folder = mkdtempSync(join(tmpdir(), "tandem-compose-"));
    const env = {
      ...process.env,
      // In place of Consul, which test/live/compose.test.ts has.
      TANDEM_REGISTRY_ADDRESS: `${addresses.router}:3001`,
      TANDEM_TOKEN: "token-of-the-test",
      TANDEM_API_KEY: "",
      TANDEM_ENGINE_KIND: "sim",
      XDG_STATE_HOME: folder,
    };
    const run = (words: readonly string[]): ChildProcess => {
      const [command, ...args] = [...network.enter, ...words];
      return spawn(command!, args, { env, stdio: ["ignore", "pipe", "pipe"] });
    };
    /** Words of the file as they stand on this machine: our build, and one address where the container has all of its own. */
    const local = (service: (typeof names)[number], words: readonly string[]): string[] =>
      words.map((word) =>
        word
          .replaceAll("$$", "$")
          .replaceAll("/app/dist/clients/cli/main.js", CLI)
          .replaceAll(/\$\(hostname -i\)|0\.0\.0\.0|127\.0\.0\.1/g, addresses[service]),
      );
    const services = compose();
    const processes = names.map((name) =>
      run(local(name, [...services[name]!.entrypoint!, ...services[name]!.command!])),
    );
    let said = "";
    for (const child of processes)
      for (const stream of [child.stdout!, child.stderr!])
        stream.on("data", (text: Buffer) => (said += text.toString()));
    try {
      // A check is a process: asked only once there is something to find.
      await eventually(
        "the instances say that they are ready, or a process has ended",
        () =>
          (/prefill ready on/.test(said) && /decode ready on/.test(said)) ||
          processes.some((child) => child.exitCode !== null),
        30_000,
      );
      assert.ok(
        processes.every((child) => child.exitCode === null),
        said,
      );
      await eventually(
        "every health check passes",
        async () => {
          const checks = names.map((name) => run(local(name, services[name]!.healthcheck!.test.slice(1))));
          const codes = await Promise.all(checks.map(async (check) => (await once(check, "exit"))[0] as number));
          return codes.every((code) => code === 0);
        },
        30_000,
      );
      const ask = `
        const answer = await fetch("http://${addresses.router}:3000/v1/completions", {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({ model: "tandem-sim", prompt: "Hello", max_tokens: 8 }),
        });
        console.log(answer.status, answer.headers.get("x-tandem-degraded"));`;
      const asking = run([process.execPath, "--input-type=module", "--eval", ask]);
      assert.equal(await text(asking.stdout!), "200 null\n", said);
    } finally {
      const ends = processes.map(async (child) =>
        child.exitCode === null ? ((await once(child, "exit")) as [number | null]) : [child.exitCode],
      );
      for (const child of processes) child.kill("SIGTERM");
      const codes = (await Promise.all(ends)).map(([code]) => code);
      rmSync(folder, { recursive: true, force: true });
      assert.deepEqual(codes, [0, 0, 0], said);
    }
  });
});
