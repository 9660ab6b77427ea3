import assert from "node:assert/strict";
import { type ServerHttp2Stream, constants } from "node:http2";
import { connect } from "node:net";
import type { ServiceError } from "../../services/common/errors.ts";
import type { RawCall } from "../../services/rpc/service.ts";
import { deferred, freePort, nextEvent, within } from "../support/waits.ts";
import { DECODE, dial, eachEndedOnce, record, serveRaw, startChild, startRogue } from "./fixture.ts";

const HELLO = Buffer.from("hello");
const GRPC = { ":status": 200, "content-type": "application/grpc+proto" };
/** `close()` ends its calls with `cancelled`; tests that leave a call open expect that. */
const codeOf = (error: ServiceError | undefined): string => error?.code ?? "ok";

const echo = (call: RawCall): void => {
  call.onMessage = (message) => void call.write(message);
  call.onHalfClose = () => call.end();
};

describe("a channel of the thin client", () => {
  afterEach(eachEndedOnce);

  it("connects at the first call, and says when it is up and down", async () => {
    await using server = await serveRaw(echo);
    const states: boolean[] = [];
    await using channel = dial(server.address, { onState: (up) => states.push(up) });
    assert.equal(channel.up, false);
    await channel.unary(DECODE, HELLO);
    assert.equal(channel.up, true);
    await channel.close();
    assert.deepEqual(states, [true, false]);
  });

  it("finishes a call that runs while the server says GOAWAY, and takes a new connection for the next", async () => {
    let goaway = (): void => {};
    await using rogue = await startRogue((stream) => {
      goaway = () => stream.session!.goaway();
      stream.respond(GRPC, { waitForTrailers: true });
      stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
      stream.on("data", (bytes: Buffer) => stream.write(bytes));
      stream.on("end", () => stream.end());
    });
    await using channel = dial(rogue.address);
    const first = record(channel);
    first.call.write(HELLO);
    await first.received(1);
    const down = nextDown(channel);
    goaway();
    await down;
    const second = record(channel);
    second.call.write(HELLO);
    await second.received(1);
    assert.equal(rogue.sockets.size, 2);
    first.call.write(HELLO);
    first.call.halfClose();
    assert.equal(codeOf(await first.ended), "ok");
    assert.equal(first.messages.length, 2);
    second.call.halfClose();
    assert.equal(codeOf(await second.ended), "ok");

    function nextDown(watched: { readonly up: boolean }): Promise<void> {
      return new Promise((resolve) => {
        const look = (): void => void (watched.up ? setImmediate(look) : resolve());
        look();
      });
    }
  });

  it("fails calls that a GOAWAY leaves out as never begun", async () => {
    const streams: ServerHttp2Stream[] = [];
    await using rogue = await startRogue((stream) => {
      streams.push(stream);
      if (streams.length === 2) stream.session!.goaway(constants.NGHTTP2_NO_ERROR, streams[0]!.id);
    });
    await using channel = dial(rogue.address);
    const [first, second] = [record(channel), record(channel)];
    assert.equal(codeOf(await second.ended), "instance_unavailable");
    streams[0]!.respond({ ...GRPC, "grpc-status": "0" }, { endStream: true });
    assert.equal(codeOf(await first.ended), "ok");
  });

  it("cancels open calls when it is closed, and refuses new ones", async () => {
    const cancelled = deferred();
    const opened = deferred();
    await using server = await serveRaw((call) => {
      opened.resolve();
      call.onCancel = cancelled.resolve;
    });
    await using channel = dial(server.address);
    const { ended } = record(channel);
    await opened.promise;
    await Promise.all([channel.close(), channel.close()]);
    assert.equal(codeOf(await ended), "cancelled");
    await within(cancelled.promise, "cancel at the server");
    assert.equal(codeOf(await record(channel).ended), "instance_unavailable");
  });

  it("closes while it is still connecting", async () => {
    await using server = await serveRaw(echo);
    await using channel = dial(server.address);
    const { ended } = record(channel);
    await channel.close();
    assert.equal(codeOf(await ended), "cancelled");
  });

  it("fails calls at once where nobody listens, and tries anew at the next", async () => {
    const address = `127.0.0.1:${await freePort()}`;
    await using channel = dial(address);
    const error = await record(channel).ended;
    assert.equal(codeOf(error), "instance_unavailable");
    assert.doesNotMatch(error!.message, /127\.0\.0\.1/);
    await using _server = await serveRaw(echo, { listen: address });
    assert.deepEqual(await channel.unary(DECODE, HELLO), HELLO);
  });

  it("gives up a dial that nobody answers", async () => {
    await using child = await startChild("mute");
    child.signal("SIGSTOP");
    const [host, port] = child.address.split(":") as [string, string];
    // Two connections fill the queue of a listener that accepts none; from then on the kernel drops what comes.
    const fillers = [0, 1, 2, 3].map(() => connect({ host, port: Number(port) }).on("error", () => {}));
    await Promise.all(fillers.slice(0, 2).map((socket) => nextEvent(socket, "connect")));
    await using channel = dial(child.address, { silenceMs: 300, pingIntervalMs: 100 });
    assert.equal(codeOf(await record(channel).ended), "instance_unavailable");
    for (const socket of fillers) socket.destroy();
  });

  it("fails its calls within two seconds when the server's process is stopped", async () => {
    await using child = await startChild("rpc");
    await using channel = dial(child.address);
    const first = record(channel);
    const second = record(channel);
    first.call.write(HELLO);
    second.call.write(HELLO);
    await first.received(1);
    await second.received(1);
    const stoppedMs = performance.now();
    child.signal("SIGSTOP");
    assert.equal(codeOf(await first.ended), "instance_lost");
    assert.equal(codeOf(await second.ended), "instance_lost");
    const tookMs = performance.now() - stoppedMs;
    assert.ok(tookMs < 2100, `it took ${tookMs} ms`);
    assert.equal(channel.up, false);
    // The next call connects to the same address, where the kernel still accepts: it too ends.
    assert.equal(codeOf(await record(channel).ended), "instance_lost");
    child.signal("SIGCONT");
    assert.deepEqual(await channel.unary(DECODE, HELLO), HELLO);
  });

  it("finds a server silent that had said GOAWAY before", async () => {
    await using child = await startChild("rpc");
    await using channel = dial(child.address, { silenceMs: 400, pingIntervalMs: 100 });
    const { call, ended, received } = record(channel);
    call.write(HELLO);
    await received(1);
    child.signal("SIGTERM");
    while (channel.up) await new Promise(setImmediate);
    call.write(HELLO);
    await received(2);
    // Longer than silenceMs: the server lives, and that is noticed too.
    for (let count = 3; count <= 10; count++) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      call.write(HELLO);
      await received(count);
    }
    child.signal("SIGSTOP");
    assert.equal(codeOf(await ended), "instance_lost");
  });

  it("fails its calls at once when the server's process is killed", async () => {
    await using child = await startChild("rpc");
    await using channel = dial(child.address);
    const { call, ended, received } = record(channel);
    call.write(HELLO);
    await received(1);
    const killedMs = performance.now();
    child.signal("SIGKILL");
    assert.equal(codeOf(await ended), "instance_lost");
    assert.ok(performance.now() - killedMs < 500);
  });

  it("does not take its own pause for the server's silence", async () => {
    await using child = await startChild("rpc");
    await using channel = dial(child.address, { silenceMs: 200, pingIntervalMs: 50 });
    const { call, ended, received } = record(channel);
    call.write(HELLO);
    await received(1);
    const untilMs = performance.now() + 500;
    while (performance.now() < untilMs); // Deaf for longer than silenceMs, as in a long garbage collection.
    await new Promise((resolve) => setTimeout(resolve, 100)); // Timers are due, then the socket is read.
    call.write(HELLO);
    await received(2);
    call.halfClose();
    assert.equal(codeOf(await ended), "ok");
  });
});
