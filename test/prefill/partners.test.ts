import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { Partners } from "../../services/prefill/partners.ts";
import { manualClock } from "../support/manual-clock.ts";
import { deferred, eventually, freePort, untilQuiet, within } from "../support/waits.ts";

/** A KV port that dies as that of a process: with all its connections. */
async function kvPort() {
  const sockets = new Set<Socket>();
  const connected = deferred();
  const server = createServer((socket) => {
    sockets.add(socket.on("error", () => {}));
    connected.resolve();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    sockets,
    connected: connected.promise,
    die(): void {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}

function lab(clock = manualClock()) {
  const lost: string[] = [];
  const partners = new Partners({ clock, lost: (address) => void lost.push(address) });
  return { clock, lost, partners };
}

describe("the decode engines that a prefill engine sends KV to", () => {
  // On a clock that stands still: no port is polled.
  it("are found dead while legs run to them, once, by their closed port", async () => {
    const { partners, lost } = lab();
    const { address, die } = await kvPort();
    assert.equal(await partners.isClosed(address), false);
    const ends = [partners.legBegan(address), partners.legBegan(address)];
    assert.equal(partners.anyGone, false);
    die();
    await eventually("it is found dead", () => partners.anyGone);
    assert.equal(await partners.isClosed(address), true, "no further leg begins");
    assert.deepEqual(lost, [address]);
    ends[0]!();
    assert.equal(partners.anyGone, true, "a leg to it still runs");
    ends[1]!();
    assert.equal(partners.anyGone, false);
  });

  it("may die when no leg runs to them: the next leg finds out", async () => {
    const { partners, lost } = lab();
    const { address, die } = await kvPort();
    assert.equal(await partners.isClosed(address), false);
    partners.legBegan(address)();
    die();
    await eventually("the next leg finds out", () => partners.isClosed(address));
    assert.deepEqual([lost, partners.anyGone], [[], false]);
    assert.equal(await partners.isClosed(`127.0.0.1:${await freePort()}`), true, "one that was never there as well");
  });

  it("may close connections that are idle", async () => {
    using held = lab().partners;
    const { address, sockets, connected, die } = await kvPort();
    const end = held.legBegan(address);
    await within(connected, "the connection");
    for (const socket of sockets) socket.destroy();
    await eventually("it is connected again", () => sockets.size > 1);
    await untilQuiet();
    assert.equal(held.anyGone, false);
    end();
    die();
  });

  it("are forgotten ten minutes after their last leg", async () => {
    const { clock, partners } = lab();
    const [idle, busy, other] = await Promise.all([kvPort(), kvPort(), kvPort()]);
    partners.legBegan(idle.address)();
    const end = partners.legBegan(busy.address);
    await within(Promise.all([idle.connected, busy.connected]), "the connections");
    clock.advance(600_001);
    await partners.isClosed(other.address);
    await eventually("the connection is let go", () => [...idle.sockets].every(({ destroyed }) => destroyed));
    assert.ok(
      [...busy.sockets].some(({ destroyed }) => !destroyed),
      "a leg runs to this one",
    );
    end();
    partners[Symbol.dispose]();
    for (const { die } of [idle, busy, other]) die();
  });
});
