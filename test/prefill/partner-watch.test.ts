import assert from "node:assert/strict";
import { createServer, type AddressInfo } from "node:net";
import { watchPartners } from "../../services/prefill/partner-watch.ts";
import { manualClock } from "../support/manual-clock.ts";
import { eventually, freePort, untilQuiet } from "../support/waits.ts";

describe("the decode engines that a prefill engine sends KV to", () => {
  it("are found dead while legs run to them, once, by their closed port", async () => {
    const address = `127.0.0.1:${await freePort()}`;
    const lost: string[] = [];
    const clock = manualClock();
    const watch = watchPartners({ clock, lost: (which) => void lost.push(which) });
    const { legBegan } = watch;
    const ends = [legBegan(address), legBegan(address)];
    clock.advance(999);
    await untilQuiet();
    assert.equal(clock.pending, 1, "it is not asked yet");
    const look = async (): Promise<number> => {
      clock.advance(1_000);
      await untilQuiet();
      return lost.length;
    };
    await eventually("it is found dead", async () => (await look()) > 0);
    for (let count = 0; count < 3; count++) await look();
    assert.deepEqual(lost, [address]);
    assert.equal(watch.anyGone, true);
    for (const end of ends) end();
    assert.equal(watch.anyGone, false, "the next leg finds out again");
    assert.equal(clock.pending, 0, "no port is asked");
  });

  it("are left alone while they listen, and when no leg runs to them", async () => {
    let asked = 0;
    const server = createServer((socket) => {
      asked++;
      socket.destroy();
    });
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const alive = `127.0.0.1:${(server.address() as AddressInfo).port}`;
    const lost: string[] = [];
    const clock = manualClock();
    const { legBegan } = watchPartners({ clock, lost: (which) => void lost.push(which) });
    const end = legBegan(alive);
    legBegan(`127.0.0.1:${await freePort()}`)();
    await eventually("it was asked three times", async () => {
      clock.advance(1_000);
      await untilQuiet();
      return asked >= 3;
    });
    assert.deepEqual(lost, []);
    end();
    server.close();
  });

  it("may miss one look", async () => {
    const looks = [true, false, true, false, true, false];
    const clock = manualClock();
    const lost: string[] = [];
    const { legBegan } = watchPartners({
      clock,
      lost: (which) => void lost.push(which),
      isClosed: async () => looks.shift() ?? false,
    });
    const end = legBegan("h:1");
    while (looks.length > 0) {
      clock.advance(1_000);
      await clock.untilPending();
    }
    end();
    assert.deepEqual(lost, []);
  });
});
