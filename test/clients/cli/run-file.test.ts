import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  defaultStateDir,
  liveRuns,
  processStart,
  removeRun,
  removeStaleRuns,
  runFilePath,
  writeRun,
  type Run,
} from "../../../clients/cli/run-file.ts";

const NOBODY = 2 ** 22 + 1; // Above the largest pid of Linux.

const run = (pid: number, startedUnixMs: number, more: Partial<Run> = {}): Run => ({
  pid,
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

  it("are for their owner's eyes and list the live ones, youngest first", () => {
    writeRun(runFilePath(folder, 1), run(process.pid, 100));
    writeRun(runFilePath(folder, 2), run(process.ppid, 200));
    writeRun(runFilePath(folder, 3), run(NOBODY, 300));
    assert.equal(statSync(runFilePath(folder, 1)).mode & 0o777, 0o600);
    assert.deepEqual(
      liveRuns(folder).map((found) => found.pid),
      [process.ppid, process.pid],
    );
  });

  it("are stale when another process has the pid now", function () {
    if (processStart(process.pid) === undefined) this.skip();
    writeRun(runFilePath(folder, 1), run(process.pid, 100, { pidStart: "1" }));
    assert.deepEqual(liveRuns(folder), []);
    writeRun(runFilePath(folder, 1), run(process.pid, 100, { pidStart: processStart(process.pid)! }));
    assert.equal(liveRuns(folder).length, 1);
  });

  it("that are stale are removed, and those of others are not", () => {
    writeRun(runFilePath(folder, 1), run(NOBODY, 100));
    writeRun(runFilePath(folder, 2), run(process.ppid, 100));
    removeStaleRuns(folder);
    removeRun(runFilePath(folder, 2));
    assert.deepEqual(readdirSync(folder), ["run-2.json"]);
  });

  it("are none where nothing ever ran", () => {
    assert.deepEqual(liveRuns(join(folder, "nowhere")), []);
  });

  it("lie where the XDG base directory specification says", () => {
    assert.equal(defaultStateDir({ XDG_STATE_HOME: "/var/s" }), "/var/s/tandem");
    assert.match(defaultStateDir({ XDG_STATE_HOME: "relative" }), /\/\.local\/state\/tandem$/);
  });
});
