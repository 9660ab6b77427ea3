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
import { foreignGo, pythonWithGrpcio } from "../support/tools.ts";
import { eventually, within } from "../support/waits.ts";

/** Of a server that has sent nothing else, gRPC's C core and grpc-go take the third PING within five minutes for an attack. */
const QUIET_S = 6;

interface Foreign extends AsyncDisposable {
  readonly address: string;
}

async function startForeign(program: string, args: readonly string[]): Promise<Foreign> {
  const child = spawn(program, args, { stdio: ["pipe", "pipe", "inherit"] });
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

const [SCRIPT, DESCRIPTORS] = ["foreign/instance.py", "../../gen/descriptors.binpb"].map((path) =>
  fileURLToPath(new URL(path, import.meta.url)),
) as [string, string];

const LANGUAGES = [
  {
    name: "Python, on a server of gRPC's C core",
    find: pythonWithGrpcio,
    args: (role: string) => [SCRIPT, DESCRIPTORS, role, String(QUIET_S)],
  },
  { name: "Go, on grpc-go's server", find: foreignGo, args: (role: string) => [role, `${QUIET_S}s`] },
];

for (const { name, find, args } of LANGUAGES) {
  describe(`instances in ${name}`, function () {
    // Go's is built first.
    this.timeout(300_000);
    let program: string;

    before(async function () {
      const found = await find();
      if ("missing" in found) return skip(this, found.missing);
      program = found.path;
    });

    it("stay connected while they say nothing for long, and answer", async () => {
      await using prefill = await startForeign(program, args("prefill"));
      await using decode = await startForeign(program, args("decode"));
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
}
