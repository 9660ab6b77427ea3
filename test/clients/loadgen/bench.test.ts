import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const CLI = fileURLToPath(new URL("../../../dist/clients/cli/main.js", import.meta.url));
const run = promisify(execFile);

describe("the benchmark", function () {
  this.timeout(60_000);

  it("lists its scenarios", async () => {
    const { stdout } = await run(process.execPath, [CLI, "bench", "--help"]);
    for (const name of ["compare", "engine", "files", "fleet", "load", "memory", "start"])
      assert.match(stdout, new RegExp(`^  ${name} `, "m"));
  });

  it("finds that nothing is lost or out of order between Tandem and the engine alone", async () => {
    const folder = mkdtempSync(join(tmpdir(), "tandem-bench-test-"));
    try {
      const file = join(folder, "result.json");
      const argv = [
        "bench",
        "--streams",
        "4",
        "--requests",
        "8",
        "--rounds",
        "1",
        "--tokens",
        "16",
        "--decode_ms",
        "2",
        "--ramp_ms",
        "0",
        "--json",
        file,
      ];
      const { stdout } = await run(process.execPath, [CLI, ...argv]);
      assert.match(stdout, /answers compared with the engine's: 8; lost: 0; out of order or wrong: 0; failed: 0/);
      const result = JSON.parse(readFileSync(file, "utf8")) as {
        tandem: { chunks: number };
        processes: { name: string }[];
      };
      assert.equal(result.tandem.chunks, 8 * 16);
      if (existsSync("/proc")) {
        assert.deepEqual(
          result.processes.map((process_) => process_.name),
          ["up", "router", "prefill-1", "prefill-1 engine", "decode-1", "decode-1 engine"],
        );
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});
