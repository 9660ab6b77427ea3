import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { killLeftovers, recordEngine } from "../../services/engine/leftovers.ts";
import { identityOf } from "../../services/common/process-identity.ts";
import { makeSocketFolder } from "../../services/engine/socket-folder.ts";
import { silentLog } from "../support/log-sink.ts";
import { eventually } from "../support/waits.ts";

describe("a recorded engine", () => {
  let folder: string;
  beforeEach(() => (folder = mkdtempSync(join(tmpdir(), "tandem-records-"))));
  afterEach(() => rmSync(folder, { recursive: true }));

  async function sleeping(): Promise<{ pid: number; group: number; file: string; socketFolder: string }> {
    const child = spawn("sleep", ["60"], { detached: true, stdio: "ignore" });
    await eventually("it runs", () => identityOf(child.pid!));
    const engine = { pid: child.pid!, group: child.pid!, ...makeSocketFolder() };
    recordEngine(folder, engine, silentLog);
    return { ...engine, file: join(folder, `${child.pid}.json`), socketFolder: engine.folder };
  }
  const alter = (
    file: string,
    change: (record: { wrapper: { startedAt: string }; engine: { startedAt: string } }) => void,
  ): void => {
    const record = JSON.parse(readFileSync(file, "utf8"));
    change(record);
    writeFileSync(file, JSON.stringify(record));
  };

  it("is left alone while its wrapper runs", async () => {
    const engine = await sleeping();
    assert.equal(killLeftovers(folder, silentLog), 0);
    assert.ok(identityOf(engine.pid) !== undefined);
    assert.ok(existsSync(engine.socketFolder));
    rmSync(engine.socketFolder, { recursive: true });
    process.kill(-engine.group, "SIGKILL");
  });

  it("is killed when its wrapper is gone", async () => {
    const engine = await sleeping();
    alter(engine.file, (record) => (record.wrapper.startedAt = "another process's start"));
    assert.equal(killLeftovers(folder, silentLog), 1);
    await eventually("it is gone", () => identityOf(engine.pid) === undefined);
    assert.ok(!existsSync(engine.socketFolder), "nor is its socket left");
    assert.deepEqual(readdirSync(folder), []);
  });

  it("is not confused with another process that has its number now", async () => {
    const engine = await sleeping();
    alter(engine.file, (record) => (record.wrapper.startedAt = record.engine.startedAt = "earlier"));
    assert.equal(killLeftovers(folder, silentLog), 0);
    assert.ok(identityOf(engine.pid) !== undefined);
    assert.deepEqual(readdirSync(folder), []);
    process.kill(-engine.group, "SIGKILL");
  });

  it("is forgotten if its record is malformed, or there is no folder", async () => {
    writeFileSync(join(folder, "1.json"), '{"wrapper":{"pid":1}}');
    assert.equal(killLeftovers(folder, silentLog), 0);
    assert.deepEqual(readdirSync(folder), []);
    assert.equal(killLeftovers(join(folder, "none"), silentLog), 0);
  });
});
