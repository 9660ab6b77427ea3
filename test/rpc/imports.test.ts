// Six processes share a small machine: what one of them never needs, it must not load.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

/** URLs of all modules that `script` loads. V8's coverage lists them, however they were imported. */
async function modulesOf(script: string): Promise<string[]> {
  const folder = await mkdtemp(join(tmpdir(), "tandem-modules-"));
  try {
    await promisify(execFile)(process.execPath, ["--import=tsx", "--input-type=module", "-e", script], {
      cwd: new URL("../..", import.meta.url),
      env: { ...process.env, NODE_V8_COVERAGE: folder },
    });
    const reports = await Promise.all((await readdir(folder)).map((file) => readFile(join(folder, file), "utf8")));
    return reports.flatMap((report) =>
      (JSON.parse(report) as { result: { url: string }[] }).result.map(({ url }) => url),
    );
  } finally {
    await rm(folder, { recursive: true });
  }
}

describe("importing the server and the clients", () => {
  it("loads neither Connect nor protobufjs nor proto-loader", async () => {
    const files = ["server", "channel", "connect-handler"].map((file) => `await import("./services/rpc/${file}.ts");`);
    const modules = await modulesOf(files.join("\n"));
    assert.ok(modules.some((url) => url.includes("@grpc/grpc-js")));
    assert.deepEqual(
      modules.filter((url) => /@connectrpc|protobufjs|proto-loader|descriptors\.ts/.test(url)),
      [],
    );
  });

  it("loads no grpc-js for a channel alone", async () => {
    const modules = await modulesOf('await import("./services/rpc/channel.ts");');
    assert.deepEqual(
      modules.filter((url) => url.includes("@grpc/")),
      [],
    );
  });
});
