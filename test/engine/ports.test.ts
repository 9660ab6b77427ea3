import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { claimPortsFrom } from "../../services/engine/ports.ts";
import { usedPorts } from "../../services/engine/used-ports.ts";
import { silentLog } from "../support/log-sink.ts";
import { freePort } from "../support/waits.ts";

const HOST = "127.0.0.1";

describe("ports for an engine that binds them later", () => {
  it("are given to one engine only, until it is gone", async function () {
    if (process.platform !== "linux") this.skip();
    const from = await freePort();
    const first = await claimPortsFrom(HOST, from);
    const second = await claimPortsFrom(HOST, from);
    assert.ok(second.first > first.first);
    first.release();
    const third = await claimPortsFrom(HOST, from);
    assert.equal(third.first, first.first);
    for (const one of [second, third]) one.release();
  });

  it("are as many in a row as it has ranks", async () => {
    const taken = createServer();
    await new Promise<void>((done) => taken.listen(0, HOST, done));
    const { port } = taken.address() as AddressInfo;
    const claimed = await claimPortsFrom(HOST, port - 1, 3);
    assert.ok(
      claimed.first > port || claimed.first + 2 < port,
      `${claimed.first} to ${claimed.first + 2} around ${port}`,
    );
    claimed.release();
    taken.close();
  });

  it("are none that an engine had before, unless all were", async () => {
    const folder = mkdtempSync(join(tmpdir(), "tandem-ports-"));
    const from = await freePort();
    const used = usedPorts(join(folder, "kv-ports"), silentLog);
    const first = await claimPortsFrom(HOST, from, 2, used);
    first.release();
    // As another process reads it, later.
    const again = usedPorts(join(folder, "kv-ports"), silentLog);
    const second = await claimPortsFrom(HOST, from, 2, again);
    second.release();
    assert.ok(second.first > first.first + 1, `${second.first} after ${first.first}`);
    for (let port = from; port < from + 1_000; port++) again.add(port);
    const third = await claimPortsFrom(HOST, from, 2, again);
    third.release();
    assert.equal(third.first, first.first);
    rmSync(folder, { recursive: true });
  });
});
