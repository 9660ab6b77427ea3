import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { skip } from "../../support/skip.ts";
import { eventually, within } from "../../support/waits.ts";
import { spawnUp, startUp, type RunningUp } from "./running-up.ts";

const LONG_MS = 30_000;

const CLI = fileURLToPath(new URL("../../../dist/clients/cli/main.js", import.meta.url));

/** The bytes of a stream of `tokens` tokens as they come; resolves after the first. */
async function openStream(url: string, tokens: number): Promise<{ readonly text: Promise<string> }> {
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "tandem-sim", prompt: "Hello", max_tokens: tokens, ignore_eos: true, stream: true }),
  });
  assert.equal(response.status, 200, await (response.status === 200 ? "" : response.text()));
  const reader = response.body!.getReader();
  const decoder = new TextDecoder();
  let text = decoder.decode((await reader.read()).value);
  const rest = async (): Promise<string> => {
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return text;
        text += decoder.decode(value, { stream: true });
      }
    } catch (error) {
      return `${text}\nbroken: ${(error as Error).message}`;
    }
  };
  return { text: rest() };
}

async function ask(url: string): Promise<number> {
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "tandem-sim", prompt: "Hello", max_tokens: 3 }),
  });
  await response.text();
  return response.status;
}

function pidOf(up: RunningUp, name: string): number {
  return up.run().processes.find((process_) => process_.name === name)!.pid;
}

describe("tandem up", function () {
  this.timeout(60_000);
  before(function () {
    // The processes of a run are found by their environment.
    if (!existsSync("/proc/self/environ")) skip(this, "there is no /proc");
  });

  describe("while it runs", () => {
    let up: RunningUp;
    before(async () => {
      up = await startUp();
    });
    after(() => up?.[Symbol.asyncDispose]());

    it("prints lines that work when pasted", () => {
      const curl = /^ {2}(curl .*)$/m.exec(up.output())![1]!;
      const answer = spawnSync("/bin/sh", ["-c", curl], { encoding: "utf8" });
      assert.equal(answer.status, 0, answer.stderr);
      assert.match(answer.stdout, /data: \[DONE\]\n/);
    });

    it("leaves a run file that only its owner can read", () => {
      const [name] = readdirSync(up.stateDir).filter((file) => file.startsWith("run-"));
      assert.equal(statSync(join(up.stateDir, name!)).mode & 0o777, 0o600);
      assert.deepEqual(
        up.run().processes.map((process_) => process_.name),
        ["router", "prefill-1", "decode-1"],
      );
    });

    it("names itself in the lines that it prints, and has no token in them without a terminal", () => {
      const { name, token } = up.run();
      assert.equal(name, `port-${new URL(up.run().restUrl).port}`);
      assert.ok(up.output().includes(`npx tandem status --state.dir ${up.stateDir} --name ${name}\n`), up.output());
      assert.ok(!up.output().includes(token));
      const [, file] = /The join token is in (\S+),/.exec(up.output())!;
      assert.equal((JSON.parse(readFileSync(file!, "utf8")) as { token: string }).token, token);
    });

    it("is listed by `tandem ls`, without its token", () => {
      const ls = (...argv: string[]): string =>
        spawnSync(process.execPath, [CLI, "ls", "--state.dir", up.stateDir, ...argv], { encoding: "utf8" }).stdout;
      assert.match(ls(), new RegExp(`^NAME .*\n${up.run().name} +${up.run().restUrl}/v1 .* 3 `));
      assert.ok(!ls("--json").includes(up.run().token));
      const [{ name, pid }] = JSON.parse(ls("--json"));
      assert.deepEqual([name, pid], [up.run().name, up.pid]);
    });

    it("refuses a second deployment of the same name", () => {
      const argv = ["up", "--state.dir", up.stateDir, "--port=0", "--grpc-port=0", "--name", up.run().name];
      const second = spawnSync(process.execPath, [CLI, ...argv], { encoding: "utf8" });
      assert.equal(second.status, 1);
      assert.match(second.stderr, /^A deployment named port-\d+ runs here already, at .*--name\.\n$/);
    });

    it("is found by `tandem status`, token included", () => {
      const table = spawnSync(process.execPath, [CLI, "status", "--state.dir", up.stateDir], { encoding: "utf8" });
      assert.equal(table.status, 0, table.stderr);
      assert.match(table.stdout, /^prefill-\S+ +prefill +serving +tandem-sim +sim/m);
      assert.match(table.stdout, /^decode-\S+ +decode +serving +tandem-sim +sim/m);
      const json = spawnSync(process.execPath, [CLI, "status", "--json", "--state.dir", up.stateDir], {
        encoding: "utf8",
      });
      const { instances } = JSON.parse(json.stdout) as { instances: { eligible: boolean; legs: number }[] };
      assert.deepEqual(
        instances.map(({ eligible, legs }) => ({ eligible, legs })),
        [
          { eligible: true, legs: 0 },
          { eligible: true, legs: 0 },
        ],
      );
    });

    it("reports a port in use with its flag to a second `tandem up`", async () => {
      const { port } = new URL(up.run().restUrl);
      await using second = spawnUp(["--port", port, "--grpc-port", "0"], {});
      assert.equal((await second.exited).code, 1);
      assert.match(second.output(), new RegExp(`127\\.0\\.0\\.1:${port} is in use: .* with --port PORT`));
    });

    it("restarts an instance that dies, and says why", async () => {
      process.kill(pidOf(up, "decode-1"), "SIGKILL");
      await up.says(/decode-1 died \(SIGKILL\) after [\d.]+ s; restarting it in 0\.2 s\./);
      await up.says(/decode-1 +ready again/);
      assert.equal(await ask(up.run().restUrl), 200);
    });

    it("restarts the router, which finds its instances by itself", async () => {
      process.kill(pidOf(up, "router"), "SIGKILL");
      await up.says(/router died \(SIGKILL\)/);
      await up.says(/router +ready again/);
      await eventually("the router serves again", async () => (await ask(up.run().restUrl)) === 200, 10_000);
    });

    it("leaves no process behind when it is killed", async () => {
      assert.ok(up.processes().length >= 6);
      process.kill(up.pid, "SIGKILL");
      await eventually("everything is gone", () => up.processes().length === 0, LONG_MS);
    });
  });

  it("ends everything at Ctrl-C without waiting for a running stream, whose client gets an error", async () => {
    await using up = await startUp();
    const stream = await openStream(up.run().restUrl, 8_000);
    process.kill(up.pid, "SIGINT");
    assert.deepEqual(await within(up.exited, "the end", LONG_MS), { code: 0, signal: null });
    assert.deepEqual(up.processes(), []);
    assert.match(await stream.text, /"error"/);
    assert.deepEqual(
      readdirSync(up.stateDir).filter((name) => name.startsWith("run-")),
      [],
    );
  });

  it("lets a running stream finish after SIGTERM", async () => {
    await using up = await startUp(["--engine.flag=--sim.decode_ms_per_token=20"]);
    const stream = await openStream(up.run().restUrl, 100);
    // As systemd does, which signals all processes of a unit.
    for (const { pid } of [up, ...up.run().processes]) process.kill(pid, "SIGTERM");
    const text = await within(stream.text, "the stream", 20_000);
    assert.match(text, /data: \[DONE\]\n\n$/);
    assert.equal(text.match(/"text":/g)!.length, 100);
    assert.deepEqual(await within(up.exited, "the end"), { code: 0, signal: null });
    assert.doesNotMatch(up.output(), /died/);
    assert.deepEqual(up.processes(), []);
  });

  it("ends at once at a second signal", async () => {
    await using up = await startUp();
    const stream = await openStream(up.run().restUrl, 8_000);
    process.kill(up.pid, "SIGTERM");
    await up.says(/A second signal ends them/);
    // Sooner, it is taken for the same signal: npm passes on what the terminal has sent already.
    await sleep(550);
    process.kill(up.pid, "SIGTERM");
    assert.equal((await within(up.exited, "the end", LONG_MS)).code, 143);
    await eventually("everything is gone", () => up.processes().length === 0, LONG_MS);
    await stream.text;
  });

  for (const [flag, other] of [
    ["--port", "--grpc-port"],
    ["--grpc-port", "--port"],
  ] as const) {
    it(`starts nothing when the port of ${flag} is taken by another program`, async () => {
      const server = createServer();
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
      const { port } = server.address() as AddressInfo;
      await using up = spawnUp([flag, `${port}`, other, "0"]);
      assert.equal((await up.exited).code, 1);
      assert.equal(
        up.output(),
        `127.0.0.1:${port} is in use: another program listens there. Stop that program, or choose another port with ${flag} PORT (0 takes a free one).\n`,
      );
      server.close();
    });
  }

  it("stops everything and says why when a process can't start", async () => {
    await using up = spawnUp(["--decode", "2", "--engine.flag=--no-such-flag"]);
    assert.equal((await within(up.exited, "the end", 20_000)).code, 1);
    assert.match(up.output(), /no flag --no-such-flag/);
    assert.match(up.output(), /(prefill-1|decode-1|decode-2) could not start \(exit code \d\)/);
    assert.deepEqual(up.processes(), []);
  });

  it("writes the logs of its processes to files, and shows them only with --verbose", async () => {
    await using up = await startUp(["--verbose"], { TANDEM_LOG_LEVEL: "debug" });
    assert.match(up.output(), /^prefill-1 \| info settings/m);
    const logs = readFileSync(join(up.run().logDir, "prefill-1.log"), "utf8");
    assert.match(logs, /"msg":"settings"/);
    assert.ok(!(logs + up.output().replace(/grpcurl.*/, "")).includes(up.run().token), "the join token is in no log");
  });
});
