// compose.yaml and the Dockerfile as they are: the images built, the containers run in a network of their own, an
// instance killed. What stands in for a registry and a daemon is told in support/containers.ts.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { skip } from "../support/skip.ts";
import { consul } from "../support/tools.ts";
import { eventually, freePort } from "../support/waits.ts";
import { openContainers, type Containers } from "./support/containers.ts";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const COMPOSE = ["--project-name", "tandem-test", "--in-pod", "false", "--file", join(ROOT, "compose.yaml")];
/** By the target of the Dockerfile, as compose.yaml names them. */
const IMAGES = { tandem: "tandem", vllm: "tandem-vllm" };
const COMMIT = "0123456789abcdef0123456789abcdef01234567";
const NAMES = ["router_1", "prefill_1", "decode_1", "decode_2"].map((name) => `tandem-test_${name}`);
/** Five processes start at once, on a machine that may have much else to do. */
const START_MS = 180_000;

const read = (file: string): string => readFileSync(join(ROOT, file), "utf8");
/** The name of an image, as the file has it. */
const named = (file: string, before: string): string => new RegExp(`^ *${before}(\\S+)$`, "m").exec(read(file))![1]!;

describe("compose.yaml in containers", function () {
  // With everything to install and to build, on a machine that has much else to do.
  this.timeout(20 * 60_000);
  let containers: Containers;

  before(async function () {
    const agent = await consul();
    if ("missing" in agent) return skip(this, agent.missing);
    const opened = await openContainers();
    if ("missing" in opened) return skip(this, opened.missing);
    containers = opened;
    const node = named("Dockerfile", "ARG NODE_IMAGE=");
    await containers.makeNodeImage(node);
    const program = basename(agent.path);
    await containers.makeImage(
      named("compose.yaml", "image: (?=docker)"),
      ["FROM scratch", `COPY ${program} /bin/consul`],
      dirname(agent.path),
    );
    // What the Dockerfile relies on in vLLM's image, and no more: a system without Node, and the user.
    await containers.makeImage(named("Dockerfile", "ARG VLLM_IMAGE="), [
      `FROM ${node}`,
      "RUN rm /usr/local/bin/node && useradd --uid 2000 --gid 0 --create-home vllm",
    ]);
    for (const [target, name] of Object.entries(IMAGES))
      await containers.build("--target", target, "--tag", name, "--build-arg", `SOURCE_COMMIT=${COMMIT}`, ROOT);
  });
  after(() => containers?.[Symbol.asyncDispose]());

  const runIn = (image: string, script: string): Promise<string> =>
    containers.podman("run", "--rm", "--network=none", "--entrypoint=/bin/sh", image, "-euc", script);

  it("makes an image that runs as an unprivileged user, without build tools", async () => {
    const said = await runIn(IMAGES.tandem, "id -u; ls /app; ls /app/node_modules");
    assert.match(said, /^1000\ndist\ngen\nmodels\nnode_modules\npackage\.json\n/);
    assert.match(said, /\nzeromq$/);
    assert.doesNotMatch(said, /\n(typescript|mocha|tsx)\n/);
  });

  it("makes an image for vLLM that does too, and can write where volumes are mounted", async () => {
    const script = "id -u; touch /gpus/0 ~/.cache/huggingface/model; node /app/dist/clients/cli/main.js --version";
    assert.match(await runIn(IMAGES.vllm, script), /^2000\n\d+\.\d+\.\d+ \(commit 0123456789ab\)$/);
  });

  describe("running", () => {
    let rest: string;
    let agent: string;

    const chat = async (extra: object = {}): Promise<Response> =>
      fetch(`${rest}/v1/chat/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ model: "tandem-tiny", messages: [{ role: "user", content: "Hello" }], ...extra }),
      });
    /** The instances that Consul would give others, by their id. */
    const passing = async (service: string): Promise<Map<string, { address: string; kvHost: string }>> => {
      const answer = await fetch(`${agent}/v1/health/service/tandem-${service}?passing=true`);
      const listed = ((await answer.json()) as any[]).map(({ Service }) => Service);
      return new Map(
        listed.map(({ ID, Address, Meta }) => [ID, { address: Address, kvHost: Meta.kv_address?.split(":")[0] }]),
      );
    };

    before(async () => {
      const ports = { TANDEM_PORT: String(await freePort()), CONSUL_PORT: String(await freePort()) };
      [rest, agent] = [`http://127.0.0.1:${ports.TANDEM_PORT}`, `http://127.0.0.1:${ports.CONSUL_PORT}`];
      const env = { ...ports, TANDEM_TOKEN: randomBytes(16).toString("hex"), TANDEM_API_KEY: "" };
      await containers.compose(env, ...COMPOSE, "up", "--detach", "--no-build", "--scale", "decode=2");
      await eventually(
        "the router is ready and Consul has all four processes",
        async () => {
          const sizes = [];
          for (const service of ["router", "prefill", "decode"]) sizes.push((await passing(service)).size);
          return (await fetch(`${rest}/readyz`)).ok && sizes.join() === "1,1,2";
        },
        START_MS,
      ).catch(async (error: Error) => {
        const asked = [["ps", "--all"], ...NAMES.map((name) => ["logs", "--tail=20", name])];
        const said = await Promise.all(asked.map((words) => containers.podman(...words).catch(String)));
        throw new Error([error.message, ...said].join("\n"), { cause: error });
      });
    });

    it("has every process in Consul, under an address of its own in compose's network", async () => {
      const found = [...(await passing("prefill")).values(), ...(await passing("decode")).values()];
      const addresses = found.map(({ address }) => address);
      addresses.push(...[...(await passing("router")).values()].map(({ address }) => address));
      assert.equal(new Set(addresses).size, 4, addresses.join());
      for (const address of addresses) assert.match(address, /^10\./);
      for (const { address, kvHost } of found) assert.equal(kvHost, address);
    });

    it("publishes nothing beyond the host's loopback", async () => {
      const published = (await containers.podman("ps", "--format={{.Ports}}"))
        .split("\n")
        .filter((line) => line !== "");
      assert.equal(published.length, 2);
      for (const ports of published) assert.match(ports, /^127\.0\.0\.1:\d+->\d+\/tcp$/);
    });

    it("has healthy containers, by their own checks", async () => {
      for (const name of ["tandem-test_consul_1", ...NAMES])
        await eventually(
          `${name} is healthy`,
          async () => (await containers.podman("healthcheck", "run", name)) === "",
          START_MS,
        );
    });

    it("answers through both legs, whole and streamed", async () => {
      const whole = await chat();
      assert.deepEqual([whole.status, whole.headers.get("x-tandem-degraded")], [200, null]);
      const { choices } = (await whole.json()) as any;
      assert.match(choices[0].message.content, /tandem-tiny/);
      assert.match(await (await chat({ stream: true })).text(), /\ndata: \[DONE\]\n\n$/);
    });

    it("serves on while an instance is killed, which comes back", async () => {
      const before = await passing("decode");
      const pid = Number(await containers.podman("inspect", "--format={{.State.Pid}}", NAMES[2]!));
      // Its first process, so that all of the container dies at once. Not `podman kill`, after which none is restarted.
      process.kill(pid, "SIGKILL");
      for (let turn = 0; turn < 4; turn++) assert.equal((await chat()).status, 200);
      const after = await eventually(
        "two decode instances, one of them new",
        async () => {
          const now = await passing("decode");
          return now.size === 2 && [...now.keys()].some((id) => !before.has(id)) && now;
        },
        START_MS,
      );
      assert.equal([...after.keys()].filter((id) => before.has(id)).length, 1, "the other one is the same");
      for (let turn = 0; turn < 4; turn++) assert.equal((await chat()).status, 200);
    });

    it("stops when asked to", async () => {
      await containers.podman("stop", "--time=60", ...NAMES);
      const codes = await containers.podman("inspect", "--format={{.State.ExitCode}}", ...NAMES);
      assert.deepEqual(codes.split("\n"), ["0", "0", "0", "0"]);
    });
  });
});
