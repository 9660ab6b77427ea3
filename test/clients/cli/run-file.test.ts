import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  liveRuns,
  removeRun,
  removeStaleRuns,
  runFilePath,
  writeRun,
  type Run,
} from "../../../clients/cli/run-file.ts";
import { identityOf } from "../../../services/common/process-identity.ts";

const NOBODY = 2 ** 22 + 1; // Above the largest pid of Linux.

const run = (pid: number, startedUnixMs: number, more: Partial<Run> = {}): Run => ({
  name: "tandem",
  pid,
  pidStart: identityOf(pid)?.startedAt ?? "",
  startedUnixMs,
  restUrl: "http://127.0.0.1:1",
  grpcAddress: "127.0.0.1:2",
  token: "t",
  logDir: "/l",
  processes: [],
  ...more,
});

describe("files of runs", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "tandem-runs-"));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  it("are readable only by their owner, and list live runs, the newest first", () => {
    writeRun(runFilePath(folder, 1), run(process.pid, 100));
    writeRun(runFilePath(folder, 2), run(process.ppid, 200));
    writeRun(runFilePath(folder, 3), run(NOBODY, 300));
    assert.equal(statSync(runFilePath(folder, 1)).mode & 0o777, 0o600);
    assert.deepEqual(
      liveRuns(folder).map((found) => found.pid),
      [process.ppid, process.pid],
    );
  });

  it("are stale if another process has the pid now", () => {
    writeRun(runFilePath(folder, 1), run(process.pid, 100, { pidStart: "another start" }));
    assert.deepEqual(liveRuns(folder), []);
    writeRun(runFilePath(folder, 1), run(process.pid, 100));
    assert.equal(liveRuns(folder).length, 1);
  });

  it("of killed runs are removed, those of other runs are not", () => {
    writeRun(runFilePath(folder, 1), run(NOBODY, 100));
    writeRun(runFilePath(folder, 2), run(process.ppid, 100));
    removeStaleRuns(folder);
    removeRun(runFilePath(folder, 2));
    assert.deepEqual(readdirSync(folder), ["run-2.json"]);
  });

  it("are absent if nothing ever ran", () => {
    assert.deepEqual(liveRuns(join(folder, "nowhere")), []);
  });
});
