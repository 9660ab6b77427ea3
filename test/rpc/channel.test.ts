import assert from "node:assert/strict";
import { type ServerHttp2Stream, constants } from "node:http2";
import { connect } from "node:net";
import type { ServiceError } from "../../services/common/errors.ts";
import { manualClock } from "../support/manual-clock.ts";
import { deferred, freePort, nextEvent, within } from "../support/waits.ts";
import {
  DECODE,
  dial,
  dialBeating,
  eachEndedOnce,
  lossOf,
  record,
  serveRaw,
  startChild,
  startRogue,
  untilState,
  HELLO,
  codeOf,
  echo,
} from "./fixture.ts";

const GRPC = { ":status": 200, "content-type": "application/grpc+proto" };

describe("a channel of the thin client", () => {
  afterEach(eachEndedOnce);

  it("connects at the first call, and reports its states", async () => {
    const server = await serveRaw(echo);
    const states: string[] = [];
    await using channel = dial(server.address, { onState: ({ kind }) => states.push(kind) });
    assert.equal(channel.state.kind, "idle");
    await channel.unary(DECODE, HELLO);
    await server[Symbol.asyncDispose]();
    await untilState(channel, "down");
    await channel[Symbol.asyncDispose]();
    assert.deepEqual(states, ["connecting", "up", "down", "closed"]);
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
    goaway();
    await untilState(channel, "down");
    assert.equal(lossOf(channel.state), "ended");
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
    await Promise.all([channel[Symbol.asyncDispose](), channel[Symbol.asyncDispose]()]);
    assert.equal(codeOf(await ended), "cancelled");
    await within(cancelled.promise, "cancel at the server");
    assert.equal(codeOf(await record(channel).ended), "instance_unavailable");
  });

  it("closes while it is connecting", async () => {
    await using server = await serveRaw(echo);
    await using channel = dial(server.address);
    const { ended } = record(channel);
    await channel[Symbol.asyncDispose]();
    assert.equal(codeOf(await ended), "cancelled");
  });

  it("fails calls at once if no server listens, and connects again for the next call", async () => {
    const address = `127.0.0.1:${await freePort()}`;
    await using channel = dial(address);
    const error = await record(channel).ended;
    assert.equal(codeOf(error), "instance_unavailable");
    assert.doesNotMatch(error!.message, /127\.0\.0\.1/);
    await using _server = await serveRaw(echo, { listen: address });
    assert.deepEqual(await channel.unary(DECODE, HELLO), HELLO);
  });

  it("fails calls to an impossible address, and goes on", async () => {
    for (const address of ["127.0.0.1:99999", "999.1.1.1:1", "..:1", "[::1:1", "nothing"]) {
      await using channel = dialBeating(address);
      assert.equal(codeOf(await record(channel).ended), "instance_unavailable", address);
    }
  });

  it("gives up a connection that is not answered in time", async () => {
    await using child = await startChild("mute");
    child.signal("SIGSTOP");
    const [host, port] = child.address.split(":") as [string, string];
    // Two connections fill the queue of a listener that accepts none; from then on the kernel drops what comes.
    const fillers = [0, 1, 2, 3].map(() => connect({ host, port: Number(port) }).on("error", () => {}));
    await Promise.all(fillers.slice(0, 2).map((socket) => nextEvent(socket, "connect")));
    const clock = manualClock();
    await using channel = dial(child.address, { clock });
    const { ended } = record(channel);
    await clock.pass(1_999);
    assert.equal(channel.state.kind, "connecting");
    await clock.pass(1);
    assert.equal(codeOf(await ended), "instance_unavailable");
    assert.equal(lossOf(channel.state), "unreachable");
    for (const socket of fillers) socket.destroy();
  });

  it("fails its calls at once when the server's process is killed", async () => {
    await using child = await startChild("rpc");
    await using channel = dial(child.address);
    const { call, ended, received } = record(channel);
    call.write(HELLO);
    await received(1);
    child.signal("SIGKILL");
    assert.equal(codeOf(await ended), "instance_lost");
    assert.equal(lossOf(channel.state), "broken");
  });

  it("reports the end of a call in a turn of its own, after the whole packet was read", async () => {
    const streams: ServerHttp2Stream[] = [];
    await using rogue = await startRogue((stream) => {
      if (streams.push(stream) < 2) return;
      for (const one of streams) one.respond({ ...GRPC, "grpc-status": "0" }, { endStream: true });
    });
    await using channel = dial(rogue.address);
    const first = deferred<ServiceError | undefined>();
    channel.open(DECODE, {
      onMessage() {},
      onEnd(error) {
        second.call.cancel(); // Too late for that: its end has been read.
        first.resolve(error);
      },
    });
    const second = record(channel);
    assert.deepEqual([codeOf(await first.promise), codeOf(await second.ended)], ["ok", "ok"]);
  });
});

describe("a channel that is retired", () => {
  afterEach(eachEndedOnce);

  it("finishes its calls, takes no new one, and closes with the last", async () => {
    await using server = await serveRaw(echo);
    const states: string[] = [];
    await using channel = dialBeating(server.address, { onState: ({ kind }) => states.push(kind) });
    const [first, second] = [record(channel), record(channel)];
    for (const { call, received } of [first, second]) {
      call.write(HELLO);
      await received(1);
    }
    const closed = channel.retire();
    assert.equal(codeOf(await record(channel).ended), "instance_unavailable");
    first.call.halfClose();
    assert.equal(codeOf(await first.ended), "ok");
    second.call.write(HELLO);
    await second.received(2);
    assert.equal(channel.state.kind, "retired");
    second.call.halfClose();
    assert.equal(codeOf(await second.ended), "ok");
    await within(closed, "the close");
    assert.deepEqual(states, ["connecting", "up", "retired", "closed"]);
  });

  it("closes at once without calls, also while it is connecting and before it ever connected", async () => {
    await using server = await serveRaw(echo);
    for (const channel of [dial(server.address), dialBeating(server.address)]) {
      await within(channel.retire(), "the close");
      assert.equal(channel.state.kind, "closed");
    }
    await using connecting = dialBeating(server.address);
    await Promise.resolve();
    assert.equal(connecting.state.kind, "connecting");
    await within(connecting.retire(), "the close");
  });

  it("runs the calls that wait for its connection", async () => {
    await using server = await serveRaw(echo);
    await using channel = dialBeating(server.address);
    const { call, ended } = record(channel);
    const closed = channel.retire();
    call.write(HELLO);
    call.halfClose();
    assert.equal(codeOf(await ended), "ok");
    await within(closed, "the close");
  });

  it("still notices that its peer is silent", async () => {
    await using child = await startChild("rpc");
    const clock = manualClock();
    await using channel = dialBeating(child.address, { clock });
    const { call, ended, received } = record(channel);
    call.write(HELLO);
    await received(1);
    const closed = channel.retire();
    child.signal("SIGSTOP");
    await clock.pass(2_500);
    assert.equal(codeOf(await ended), "instance_lost");
    await within(closed, "the close");
  });

  it("can be closed before its calls have ended", async () => {
    await using server = await serveRaw(echo);
    await using channel = dialBeating(server.address);
    const { call, ended, received } = record(channel);
    call.write(HELLO);
    await received(1);
    const retired = channel.retire();
    await channel[Symbol.asyncDispose]();
    assert.equal(codeOf(await ended), "cancelled");
    await retired;
  });

  it("waits briefly for a peer that does not end the heartbeat call", async () => {
    const clock = manualClock();
    await using server = await serveRaw(() => {}, { clock });
    await using channel = dialBeating(server.address, { clock });
    await untilState(channel, "up");
    const closed = channel.retire();
    await clock.pass(500);
    await within(closed, "the close");
  });
});
