// Short runs of `npm run chaos`: real processes with the settings that ship, hurt by a schedule that the seed decides.
// Counts only; bounds in time are wide here, for CI machines do other things beside.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { skip } from "../support/skip.ts";
import { MAY_FETCH } from "../support/tools.ts";

const CLI = fileURLToPath(new URL("../../dist/clients/cli/main.js", import.meta.url));

interface Report {
  readonly requests: number;
  readonly faults: Readonly<Record<string, number>>;
  readonly endings: Readonly<Record<string, number>>;
  readonly itlMs: { readonly control: { readonly max: number } };
  readonly violations: readonly Violation[];
  readonly unjudged: readonly Violation[];
}

interface Violation {
  readonly rule: string;
  readonly what: string;
}

describe("a deployment that is hurt at random", function () {
  // Debts of P2P NCCL are paid by restarts of idle engines, after a minute.
  this.timeout(400_000);

  for (const [fleet, seed] of [
    ["sim", 7],
    ["p2p-nccl", 11],
    ["nixl", 13],
  ] as const) {
    it(`keeps its promises, fleet ${fleet}`, async function () {
      if (process.platform !== "linux") skip(this, "chaos finds its processes in /proc");
      if (!MAY_FETCH)
        skip(this, "takes minutes of a quiet machine: CI=true or --all runs it, npm run chaos at any time");
      const folder = mkdtempSync(join(tmpdir(), "tandem-chaos-test-"));
      try {
        const file = join(folder, "report.json");
        const flags = [
          "--seed",
          seed,
          "--minutes",
          0.35,
          "--streams",
          24,
          "--fleet",
          fleet,
          "--decode_ms",
          30,
          "--slack_ms",
          10_000,
          "--hang_ms",
          60_000,
          "--drain.streams",
          60,
          "--json",
          file,
        ];
        const chaos = spawn(process.execPath, [CLI, "chaos", ...flags.map(String)], {
          stdio: ["ignore", "pipe", "pipe"],
        });
        let output = "";
        for (const stream of [chaos.stdout, chaos.stderr])
          stream.setEncoding("utf8").on("data", (text: string) => (output += text));
        const [code] = (await once(chaos, "close")) as [number | null];
        assert.ok(code !== null && code <= 2, output);
        const report = JSON.parse(readFileSync(file, "utf8")) as Report;
        assert.deepEqual(
          report.violations.map(({ rule, what }) => `${rule}: ${what}`),
          [],
          output,
        );
        assert.ok(Object.values(report.faults).reduce((sum, count) => sum + count, 0) >= 2, output);
        assert.ok((report.endings["completed"] ?? 0) > 20, output);
      } finally {
        rmSync(folder, { recursive: true, force: true });
      }
    });
  }
});
