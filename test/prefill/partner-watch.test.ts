import assert from "node:assert/strict";
import { createServer, type AddressInfo } from "node:net";
import { watchPartners } from "../../services/prefill/partner-watch.ts";
import { deferred, freePort, within } from "../support/waits.ts";

describe("the decode engines that a prefill engine sends KV to", () => {
  it("are found dead while legs run to them, once, by their closed port", async () => {
    const address = `127.0.0.1:${await freePort()}`;
    const lost: string[] = [];
    const told = deferred();
    const watch = watchPartners({ everyMs: 20, lost: (which) => (lost.push(which), told.resolve()) });
    const ends = [watch.began(address), watch.began(address)];
    await within(told.promise, "it is found dead");
    await new Promise((resolve) => setTimeout(resolve, 100));
    assert.deepEqual(lost, [address]);
    for (const end of ends) end();
  });

  it("are left alone while they listen, and when no leg runs to them", async () => {
    const server = createServer((socket) => socket.destroy());
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const alive = `127.0.0.1:${(server.address() as AddressInfo).port}`;
    const lost: string[] = [];
    const watch = watchPartners({ everyMs: 10, lost: (which) => void lost.push(which) });
    const end = watch.began(alive);
    watch.began(`127.0.0.1:${await freePort()}`)();
    await new Promise((resolve) => setTimeout(resolve, 120));
    assert.deepEqual(lost, []);
    end();
    server.close();
  });

  it("may miss one look", async () => {
    const looks = [true, false, true, false, true, false];
    const done = deferred();
    const lost: string[] = [];
    const watch = watchPartners({
      everyMs: 5,
      lost: (which) => void lost.push(which),
      isClosed: async () => {
        if (looks.length === 1) done.resolve();
        return looks.shift() ?? false;
      },
    });
    const end = watch.began("h:1");
    await within(done.promise, "all looks");
    end();
    assert.deepEqual(lost, []);
  });
});
