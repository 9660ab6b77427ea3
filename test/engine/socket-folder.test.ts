import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { makeSocketFolder, removeSocketFolder } from "../../services/engine/socket-folder.ts";

describe("the folder of an engine's socket", () => {
  it("is where the path still fits into a socket's name", () => {
    const { folder, socketPath } = makeSocketFolder(`/tmp/${"long".repeat(30)}`);
    assert.equal(dirname(folder), "/tmp");
    assert.ok(Buffer.byteLength(socketPath) <= 103);
    removeSocketFolder(folder);
  });

  it("is refused with what to set where nothing can be written", () => {
    assert.throws(
      () => makeSocketFolder("/proc"),
      /can't be created: .*Set TMPDIR to a folder that can be written to\./,
    );
  });

  it("is the only folder that is ever removed", () => {
    const other = mkdtempSync(join(tmpdir(), "not-an-engines-"));
    const { folder } = makeSocketFolder(other);
    removeSocketFolder(folder);
    removeSocketFolder(other);
    assert.deepEqual(readdirSync(other), []);
    rmSync(other, { recursive: true });
  });
});
