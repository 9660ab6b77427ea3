import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HeldConnection } from "../../services/engine/held-connection.ts";
import { listenerPid } from "../../services/engine/listener-pid.ts";
import { manualClock } from "../support/manual-clock.ts";
import { skip } from "../support/skip.ts";
import { deferred, untilQuiet, within } from "../support/waits.ts";

async function listen(port = 0): Promise<{ server: Server; port: number; sockets: Socket[] }> {
  const sockets: Socket[] = [];
  const server = createServer((socket) => void sockets.push(socket.on("error", () => {})));
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  return { server, port: (server.address() as AddressInfo).port, sockets };
}

describe("a connection that is held", () => {
  // On a clock that stands still: nothing here waits for a time.
  const hold = (port: number, clock = manualClock()): { held: HeldConnection; closed: Promise<void> } => {
    const { promise: closed, resolve } = deferred();
    const held = new HeldConnection({ dial: () => connect(port, "127.0.0.1"), closed: resolve, clock });
    return { held, closed };
  };

  it("tells at once when the process behind it is gone", async () => {
    const { server, port, sockets } = await listen();
    const { held, closed } = hold(port);
    await within(held.known, "the connection");
    assert.equal(held.isClosed, false);
    server.close();
    for (const socket of sockets) socket.destroy();
    await within(closed, "the news");
    assert.equal(held.isClosed, true);
  });

  it("tells where nothing listens", async () => {
    const { server, port } = await listen();
    server.close();
    const { held, closed } = hold(port);
    await within(closed, "the news");
    await held.known;
    assert.equal(held.isClosed, true);
  });

  for (const [what, end] of [
    ["is made again, without haste, where a server closes what is idle", "lives"],
    ["tells where a proxy takes each connection and ends it, because nothing is behind it", "is short as well"],
  ] as const)
    it(what, async () => {
      const { server, port, sockets } = await listen();
      const clock = manualClock();
      const { held, closed } = hold(port, clock);
      for (let count = 1; count <= 3; count++) {
        while (sockets.length < count) await within(once(server, "connection"), `connection ${count}`);
        sockets.at(-1)!.destroy();
      }
      await clock.untilPending(1);
      assert.deepEqual([held.isClosed, sockets.length], [false, 3]);
      clock.advance(1_000);
      await within(once(server, "connection"), "the next one");
      if (end === "lives") clock.advance(5_000);
      sockets.at(-1)!.destroy();
      if (end === "lives") await within(once(server, "connection"), "and again");
      else await within(closed, "the news");
      assert.equal(held.isClosed, end !== "lives");
      held[Symbol.dispose]();
      server.close();
    });

  it("is let go, and tells nothing more", async () => {
    const { server, port, sockets } = await listen();
    const { held, closed } = hold(port);
    let news = false;
    void closed.then(() => (news = true));
    await within(held.known, "the connection");
    held[Symbol.dispose]();
    while (sockets.length === 0) await within(once(server, "connection"), "the connection");
    if (!sockets[0]!.destroyed) await within(once(sockets[0]!.resume(), "close"), "its end");
    server.close();
    await untilQuiet();
    assert.equal(news, false);
  });
});

describe("the process behind a port", () => {
  it("is found", async function () {
    if (process.platform !== "linux") skip(this, "processes are found in /proc");
    const { server, port } = await listen();
    assert.equal(listenerPid(port), process.pid);
    server.close();
    await once(server, "close");
    assert.equal(listenerPid(port), undefined);
    const folder = mkdtempSync(join(tmpdir(), "tandem-listener-"));
    const path = join(folder, "a socket");
    server.listen(path);
    await once(server, "listening");
    assert.equal(listenerPid(path), process.pid);
    server.close();
    rmSync(folder, { recursive: true });
  });
});
