import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createServer as createTcpServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { serveRpc } from "../../../services/rpc/server.ts";
import { silentLog } from "../../support/log-sink.ts";
import { freePort } from "../../support/waits.ts";

const CLI = fileURLToPath(new URL("../../../dist/clients/cli/main.js", import.meta.url));

interface Run {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function tandem(argv: readonly string[], env: Record<string, string> = {}): Promise<Run> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [CLI, ...argv], {
      env: { ...process.env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let stdout = "";
    let stderr = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, stdout, stderr }));
  });
}

describe("the tandem command", () => {
  it("lists its commands", async () => {
    for (const argv of [[], ["--help"], ["help"]]) {
      const { code, stdout } = await tandem(argv);
      assert.equal(code, 0);
      for (const name of ["up", "status", "router", "prefill", "decode", "engine"])
        assert.match(stdout, new RegExp(`^  ${name} `, "m"));
    }
  });

  it("says its version and the commit it was built from", async () => {
    for (const flag of ["--version", "-v", "-V", "version"]) {
      const { stdout } = await tandem([flag]);
      assert.match(stdout, /^\d+\.\d+\.\d+\S* \(commit ([0-9a-f]{12}(-dirty)?|unknown)\)\n$/);
    }
  });

  it("names the command that was likely meant", async () => {
    const { code, stderr } = await tandem(["stauts"]);
    assert.equal(code, 2);
    assert.equal(stderr, 'tandem has no command "stauts". Did you mean "status"? "tandem --help" lists all.\n');
    assert.match((await tandem(["stat"])).stderr, /Did you mean "status"\?/, "not chat, which is nearer by letters");
  });

  it("does not treat a method of Object as a command", async () => {
    assert.equal((await tandem(["constructor"])).code, 2);
  });

  for (const name of ["up", "status", "router", "prefill", "decode", "engine", "health"]) {
    it(`explains ${name}, by --help and by help`, async () => {
      const [byFlag, byHelp] = await Promise.all([tandem([name, "--help"]), tandem(["help", name])]);
      assert.equal(byFlag.code, 0, byFlag.stderr);
      assert.match(byFlag.stdout, new RegExp(`Usage: tandem ${name}\\b`));
      assert.equal(byHelp.stdout, byFlag.stdout);
    });
  }

  it("names the flag that was likely meant", async () => {
    const { code, stderr } = await tandem(["up", "--prefil", "2"]);
    assert.equal(code, 2);
    assert.match(stderr, /did you mean --prefill\?/);
  });
});

describe("tandem prefill", () => {
  const start = ["prefill", "--engine", "sim", "--registry.address=", "--log.level", "error"];

  it("says in one line that it needs a token to listen beyond loopback", async () => {
    const { code, stderr } = await tandem([...start, "--grpc.listen", "0.0.0.0:0"], { TANDEM_TOKEN: "" });
    assert.equal(code, 1);
    assert.match(
      stderr,
      /^Refusing to listen on 0\.0\.0\.0:0: .* Set TANDEM_TOKEN or tls\.\*, or listen on 127\.0\.0\.1\.\n$/,
    );
  });

  it("says in one line that its KV host is not this machine's", async () => {
    // Of the range for documentation: no machine has it.
    const flags = [...start, "--grpc.listen", "127.0.0.1:0", "--kv.listen", "192.0.2.7:21001"];
    const { code, stderr } = await tandem(flags, { TANDEM_TOKEN: "of the test" });
    assert.equal(code, 1);
    assert.match(stderr, /^--kv\.listen: 192\.0\.2\.7 is not an address of this machine \(EADDRNOTAVAIL\)\. .*\n$/);
  });
});

describe("tandem status", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "tandem-status-"));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  it("says plainly that nothing listens", async () => {
    const port = await freePort();
    const { code, stderr, stdout } = await tandem(["status", "--router", `127.0.0.1:${port}`, "--state.dir", folder]);
    assert.equal(code, 1);
    assert.equal(stdout, "");
    assert.equal(
      stderr,
      `Nothing listens at http://127.0.0.1:${port}. No \`tandem up\` of this user runs here. Start one with \`tandem up\`, or name a router with --router URL.\n`,
    );
  });

  it("says that an address is the gRPC one", async () => {
    await using server = await serveRpc({ listen: "127.0.0.1:0", services: [], log: silentLog });
    const { code, stderr } = await tandem(["status", "--router", server.address, "--state.dir", folder]);
    assert.deepEqual(
      [code, stderr],
      [1, `http://${server.address} speaks gRPC, not HTTP/1.1. Give the REST address of a router with --router.\n`],
    );
  });

  it("ignores the file of a killed run", async () => {
    const port = await freePort();
    // A pid that no process has: above the largest that Linux gives.
    const stale = {
      name: "default",
      pid: 2 ** 22 + 1,
      pidStart: "long ago",
      startedUnixMs: 1,
      restUrl: `http://127.0.0.1:${port}`,
      grpcAddress: "",
      token: "x",
      logDir: "",
      processes: [],
    };
    writeFileSync(join(folder, `run-${port}.json`), JSON.stringify(stale));
    const { stderr } = await tandem(["status", "--router", `127.0.0.1:${port}`, "--state.dir", folder]);
    assert.match(stderr, /No `tandem up` of this user runs here/);
  });
});

describe("tandem health", () => {
  it("fails with the reason if nothing listens", async () => {
    const port = await freePort();
    for (const kind of ["--rest", "--grpc"]) {
      const { code, stderr } = await tandem(["health", kind, `127.0.0.1:${port}`]);
      assert.equal(code, 1);
      assert.match(stderr, /ECONNREFUSED/);
    }
  });

  it("fails with the service's own reason, and succeeds once it serves", async () => {
    await using server = await serveRpc({ listen: "127.0.0.1:0", services: [], log: silentLog });
    server.setServing(false, "draining: new memory");
    assert.deepEqual(await tandem(["health", "--grpc", server.address]), {
      code: 1,
      stdout: "",
      stderr: `${server.address}: draining: new memory\n`,
    });
    server.setServing(true);
    assert.equal((await tandem(["health", "--grpc", server.address])).code, 0);

    let lack: string | undefined = "No instance has registered.";
    const rest = createServer((_, response) => {
      const told = lack === undefined ? { status: "ready" } : { status: "not ready", reason: lack };
      response.writeHead(lack === undefined ? 200 : 503).end(JSON.stringify(told));
    }).listen(0, "127.0.0.1");
    await once(rest, "listening");
    const address = `127.0.0.1:${(rest.address() as AddressInfo).port}`;
    assert.equal(
      (await tandem(["health", "--rest", address])).stderr,
      `${address}: not ready: No instance has registered.\n`,
    );
    lack = undefined;
    assert.equal((await tandem(["health", "--rest", address])).code, 0);
    rest.close();
  });

  it("does not wait for a service that is silent", async () => {
    const silent = createTcpServer(() => {}).listen(0, "127.0.0.1");
    await once(silent, "listening");
    const address = `127.0.0.1:${(silent.address() as AddressInfo).port}`;
    for (const kind of ["--rest", "--grpc"]) {
      const { code, stderr } = await tandem(["health", kind, address, "--timeout_ms", "100"]);
      assert.deepEqual([code, stderr.startsWith(`${address}: `)], [1, true]);
    }
    silent.close();
  });

  it("requires exactly one address", async () => {
    assert.equal((await tandem(["health"])).code, 2);
  });
});
