import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { loadConfig } from "../../../services/common/config.ts";
import { routerConfig } from "../../../services/router/config.ts";
import { startRouter } from "../../../services/router/main.ts";
import { simDecode, simPrefill } from "../../instance/legs.ts";
import { silentLog } from "../../support/log-sink.ts";
import { eventually } from "../../support/waits.ts";

const ROOT = new URL("../../../", import.meta.url);
const BUILT = new URL("dist/clients/client/index.js", ROOT).href;

describe("the script in docs/inspect.md", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "tandem-script-"));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  it("answers, reports the KV transfer, and lists the instances", async () => {
    const token = "t0k3n";
    const argv = ["--rest.listen", "127.0.0.1:0", "--grpc.listen", "127.0.0.1:0", "--token", token];
    await using router = await startRouter(loadConfig(routerConfig, { argv, env: {} }), { log: silentLog });
    const registry = { "registry.address": router.grpcAddress, token };
    await using _prefill = await simPrefill("p2p-zmq", registry);
    await using _decode = await simDecode("p2p-zmq", registry);
    await eventually("the router serves", async () => (await fetch(`${router.restUrl}/readyz`)).ok);

    const docs = readFileSync(new URL("docs/inspect.md", ROOT), "utf8");
    const [, script] = /## Call the router from a script\n.*?\n```js\n(.*?)```/s.exec(docs)!;
    const file = join(folder, "script.mjs");
    // The package's name is known where it is installed, and the address is this router's.
    const here = script!.replace(/from ".*"/, `from ${JSON.stringify(BUILT)}`).replace(/http:[^"]*/, router.restUrl);
    writeFileSync(file, here);
    const env = { ...process.env, TANDEM_TOKEN: token };
    const { stdout } = await promisify(execFile)(process.execPath, [file], { env });
    assert.match(stdout, /^\(simulated\) .*\n\d+ bytes of KV moved\nprefill-\S+ serves\ndecode-\S+ serves\n$/s);
  });
});
