import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { claimPorts, startTurn, type ClaimedPorts } from "../../services/engine/claims.ts";
import { silentLog } from "../support/log-sink.ts";
import { skip } from "../support/skip.ts";
import { deferred, freePort, within } from "../support/waits.ts";

const host = "127.0.0.1";
const claim = (from: number, span = 1, usedFolder?: string): Promise<ClaimedPorts> =>
  claimPorts({ host, from, span, usedFolder, log: silentLog });

describe("ports for an engine that binds them later", () => {
  it("are given to one engine only, until it is gone", async function () {
    if (process.platform !== "linux") skip(this, "claims are kept on Linux alone");
    const from = await freePort();
    const first = await claim(from);
    const second = await claim(from);
    assert.ok(second.first > first.first);
    first.release();
    const third = await claim(from);
    assert.equal(third.first, first.first);
    for (const one of [second, third]) one.release();
  });

  it("are as many in a row as it has ranks", async () => {
    const taken = createServer();
    await new Promise<void>((done) => taken.listen(0, host, done));
    const { port } = taken.address() as AddressInfo;
    const { first, release } = await claim(port - 1, 3);
    assert.ok(first > port || first + 2 < port, `${first} to ${first + 2} around ${port}`);
    release();
    taken.close();
  });

  it("are different from those that engines had before, as long as any are left", async () => {
    const folder = join(mkdtempSync(join(tmpdir(), "tandem-ports-")), "kv-ports");
    const from = await freePort();
    const first = await claim(from, 2, folder);
    first.release();
    const second = await claim(from, 2, folder);
    second.release();
    assert.ok(second.first > first.first + 1, `${second.first} after ${first.first}`);
    mkdirSync(folder, { recursive: true });
    for (let port = from; port < from + 1_000; port++) writeFileSync(join(folder, String(port)), "");
    const third = await claim(from, 2, folder);
    third.release();
    assert.equal(third.first, first.first);
    rmSync(join(folder, ".."), { recursive: true });
  });
});

describe("engines that start on one device", function () {
  before(function () {
    if (process.platform !== "linux") skip(this, "claims are kept on Linux alone");
  });
  const never = new AbortController().signal;
  const turn = (devices: readonly string[]): ReturnType<typeof startTurn> => startTurn(devices, never, () => {});

  it("start one after another, and beside those of other devices", async () => {
    const name = `test-${process.pid}`;
    const endFirst = await turn([`${name}-0`, `${name}-1`]);
    const waits = deferred();
    const second = startTurn([`${name}-1`], never, waits.resolve);
    await within(waits.promise, "the second waits");
    (await turn([`${name}-2`]))();
    endFirst();
    (await within(second, "the second has its turn"))();
  });

  it("give up when told to, and leave nothing held", async () => {
    const name = `test-${process.pid}-b`;
    const endFirst = await turn([`${name}-1`]);
    const stop = new AbortController();
    const waits = deferred();
    const second = startTurn([`${name}-0`, `${name}-1`], stop.signal, waits.resolve);
    await waits.promise;
    stop.abort(new Error("told to"));
    await assert.rejects(second, /told to/);
    (await within(turn([`${name}-0`]), "the device that the second had is free"))();
    endFirst();
  });
});
