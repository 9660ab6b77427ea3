// Instances that others wrote, from the contracts alone, on gRPC servers that are not Node's.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { loadConfig } from "../../services/common/config.ts";
import { routerConfig } from "../../services/router/config.ts";
import { startRouter } from "../../services/router/main.ts";
import { logSink } from "../support/log-sink.ts";
import { skip } from "../support/skip.ts";
import { pythonWithGrpcio } from "../support/tools.ts";
import { eventually, within } from "../support/waits.ts";

/** Of a server that has sent nothing else, gRPC's C core takes the third PING within five minutes for an attack. */
const QUIET_S = 6;

interface Foreign extends AsyncDisposable {
  readonly address: string;
}

async function startPython(python: string, role: "prefill" | "decode"): Promise<Foreign> {
  const [script, descriptors] = ["foreign/instance.py", "../../gen/descriptors.binpb"].map((path) =>
    fileURLToPath(new URL(path, import.meta.url)),
  );
  const child = spawn(python, [script!, descriptors!, role, String(QUIET_S)], { stdio: ["pipe", "pipe", "inherit"] });
  const [port] = (await within(once(child.stdout, "data"), "the port of the instance", 30_000)) as [Buffer];
  return {
    address: `127.0.0.1:${Number(port)}`,
    async [Symbol.asyncDispose]() {
      const exit = once(child, "exit");
      child.stdin.end();
      await exit;
    },
  };
}

describe("instances in Python, on a server of gRPC's C core", function () {
  this.timeout(120_000);
  let python: string;

  before(async function () {
    const found = await pythonWithGrpcio();
    if ("missing" in found) return skip(this, found.missing);
    python = found.path;
  });

  it("stay connected while they say nothing for long, and answer", async () => {
    await using prefill = await startPython(python, "prefill");
    await using decode = await startPython(python, "decode");
    const logs = logSink();
    const argv = ["--rest.listen=127.0.0.1:0", "--grpc.listen=127.0.0.1:0", "--registry.kind=static"];
    const instances = [prefill, decode].map(({ address }) => `--instances=${address}`);
    await using router = await startRouter(loadConfig(routerConfig, { argv: [...argv, ...instances], env: {} }), {
      log: logs.log,
    });
    await eventually("it is ready", async () => (await fetch(`${router.restUrl}/readyz`)).status === 200, 15_000);
    const answer = await fetch(`${router.restUrl}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ model: "foreign", prompt: "Are you there?", stream: true }),
    });
    const text = await answer.text();
    assert.equal(answer.status, 200, text);
    assert.match(text, /slow .*but sure.*\[DONE\]/s);
    assert.deepEqual(logs.events("instance is out"), []);
  });
});
