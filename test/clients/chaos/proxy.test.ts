import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { startProxy, type Proxy } from "../../../clients/chaos/proxy.ts";
import { deferred, freePort, nextEvent, untilQuiet, within } from "../../support/waits.ts";

describe("the proxy of chaos", () => {
  let proxy: Proxy;
  let near: Socket;
  let far: Socket;
  let server: ReturnType<typeof createServer>;
  beforeEach(async () => {
    const met = deferred<Socket>();
    server = createServer((socket) => met.resolve(socket.on("error", () => {})));
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const port = await freePort();
    proxy = await startProxy([
      {
        listen: { host: "127.0.0.1", port },
        target: { host: "127.0.0.1", port: (server.address() as AddressInfo).port },
      },
    ]);
    near = connect(port, "127.0.0.1").on("error", () => {});
    far = await within(met.promise, "the connection");
  });
  afterEach(async () => {
    near.destroy();
    far.destroy();
    await proxy.close();
    server.close();
  });
  const arrived = async (socket: Socket): Promise<string> => String((await within(once(socket, "data"), "bytes"))[0]);

  it("forwards bytes and closes, in both directions", async () => {
    near.write("there");
    assert.equal(await arrived(far), "there");
    far.write("and back");
    assert.equal(await arrived(near), "and back");
    far.destroy();
    await nextEvent(near, "close");
  });

  it("falls silent with its connections open, and later forwards the bytes that arrived meanwhile", async () => {
    proxy.setMode({ kind: "drop" });
    near.write("late");
    let early = false;
    far.once("data", () => (early = true));
    await untilQuiet();
    assert.deepEqual([early, near.destroyed, far.destroyed], [false, false, false]);
    proxy.setMode({ kind: "pass" });
    assert.equal(await arrived(far), "late");
  });

  it("reports a closed connection only after the silence", async () => {
    proxy.setMode({ kind: "drop" });
    far.destroy();
    await untilQuiet();
    assert.equal(near.destroyed, false);
    proxy.setMode({ kind: "pass" });
    await nextEvent(near, "close");
  });

  it("breaks in the middle of a message", async () => {
    proxy.setMode({ kind: "halve" });
    near.write("12345678");
    assert.equal(await arrived(far), "1234");
    await Promise.all([nextEvent(near, "close"), nextEvent(far, "close")]);
  });

  it("keeps the order of delayed bytes when the delay ends", async () => {
    proxy.setMode({ kind: "delay", ms: 1_000 });
    near.write("one ");
    await untilQuiet();
    proxy.setMode({ kind: "pass" });
    near.write("two");
    let text = "";
    while (text.length < 7) text += await arrived(far);
    assert.equal(text, "one two");
  });

  it("delays bytes when asked to", async () => {
    proxy.setMode({ kind: "delay", ms: 80 });
    const sentMs = performance.now();
    near.write("slow");
    await arrived(far);
    assert.ok(performance.now() - sentMs >= 75);
  });
});
