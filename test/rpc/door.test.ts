import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { Health } from "#gen/grpc/health/v1/health_pb.js";
import { splitAddress } from "../../services/common/address.ts";
import type { RawCall } from "../../services/rpc/service.ts";
import { logSink } from "../support/log-sink.ts";
import { manualClock } from "../support/manual-clock.ts";
import { deferred, eventually, within } from "../support/waits.ts";
import { dial, echo, HELLO, rawService, record, serve, serveRaw } from "./fixture.ts";
import { CHECK, QUESTION, REFLECT, WATCH, rawCaller } from "../../clients/common/raw-caller.ts";

const TOKEN = "join-token";
/** The keepalive of the server's library, which would find most of these callers as well, is an hour away. */
const ALONE = { keepaliveMs: 3_600_000 };

async function silentSocket(address: string): Promise<Socket> {
  const socket = connect(splitAddress(address));
  socket.on("error", () => {}).resume();
  await once(socket, "connect");
  return socket;
}

/** `pass` until the socket is closed, for its events come by the kernel and not by the clock. */
const closed = (socket: Socket): Promise<unknown> =>
  socket.closed ? Promise.resolve() : within(once(socket, "close"), "the connection's end");

/** A server with a call whose answer of 20 MiB its caller never reads. */
async function unreadAnswer(o: Parameters<typeof serveRaw>[1]) {
  const opened = deferred<RawCall>();
  const server = await serveRaw((call) => opened.resolve(call), o);
  const caller = await rawCaller(server.address, 2 ** 30);
  caller.call(0, "/tandem.decode.v1.DecodeService/Decode", HELLO);
  const call = await opened.promise;
  const cancelled = deferred();
  call.onCancel = cancelled.resolve;
  const block = Buffer.alloc(1024 * 1024);
  for (let count = 0; count < 20; count++) call.write(block);
  return { server, caller, cancelled: cancelled.promise };
}

describe("a stranger at the gRPC port", () => {
  it("is cut off after 10 s without a call, and callers with a token are not", async () => {
    const clock = manualClock();
    await using server = await serve([rawService(echo, "token")], { ...ALONE, token: TOKEN, clock });
    const sockets = await Promise.all(Array.from({ length: 200 }, () => silentSocket(server.address)));
    await using peer = dial(server.address, { token: TOKEN });
    const call = record(peer);
    call.call.write(HELLO);
    await call.received(1);
    await clock.pass(9_000);
    assert.ok(sockets.every((socket) => !socket.closed));
    await clock.pass(2_000);
    await Promise.all(sockets.map(closed));
    call.call.write(HELLO);
    await call.received(2);
    call.call.halfClose();
    assert.equal(await call.ended, undefined);
  });

  it("makes room for the next one once there are 256 that have no credentials", async () => {
    const { log, lines } = logSink();
    await using server = await serve([rawService(echo, "token")], { token: TOKEN, log });
    const sockets: Socket[] = [];
    while (sockets.length < 600) {
      const more = Array.from({ length: 100 }, () => silentSocket(server.address));
      sockets.push(...(await Promise.all(more)));
    }
    await using channel = dial(server.address);
    await channel.client(Health).check({});
    assert.equal(sockets.filter((socket) => socket.closed).length, 345);
    assert.equal(lines.filter(({ msg }) => msg === "a gRPC caller was turned away").length, 1);
    for (const socket of sockets) socket.destroy();
  });

  it("loses its connection if it does not read the answers it asked for", async () => {
    const clock = manualClock();
    await using server = await serve([], { ...ALONE, clock });
    for (const window of [65_535, 0]) {
      const caller = await rawCaller(server.address, window);
      for (let index = 0; index < 60; index++) caller.call(index, REFLECT, QUESTION);
      // Answered on another connection: by then the questions were read as well.
      await using channel = dial(server.address);
      await channel.client(Health).check({});
      if (window === 0) await eventually("the answers wait", () => clock.pending > 1);
      caller.read();
      if (window > 0) {
        caller.socket.destroy();
        continue;
      }
      await clock.pass(5_000);
      await closed(caller.socket);
    }
  });

  it("is cut off when it floods, and others are answered meanwhile", async () => {
    await using server = await serve([], ALONE);
    await using channel = dial(server.address);
    const health = channel.client(Health);
    await health.check({});
    const callers = await Promise.all(Array.from({ length: 5 }, () => rawCaller(server.address)));
    for (const caller of callers) {
      for (let index = 0; index < 500; index++) {
        caller.call(index, WATCH);
        caller.reset(index);
      }
      caller.read();
    }
    await health.check({});
    await Promise.all(callers.map(({ socket }) => closed(socket)));
    await health.check({});
  });

  it("waits when another one floods, and has its turn later", async () => {
    const clock = manualClock();
    let floods = 0;
    const onRefused = (reason: string): void => void (reason === "flood" && floods++);
    await using server = await serve([], { ...ALONE, clock, onRefused });
    const callers = await Promise.all(Array.from({ length: 8 }, () => rawCaller(server.address)));
    for (const caller of callers) {
      caller.call(0, CHECK, Buffer.alloc(0));
      caller.read();
    }
    await Promise.all(callers.map(({ socket }) => once(socket, "data")));
    for (const caller of callers) {
      caller.socket.cork();
      for (let index = 1; index < 500; index++) {
        caller.call(index, WATCH);
        caller.reset(index);
      }
    }
    for (const { socket } of callers) socket.uncork();
    await eventually("one has flooded", () => floods > 0);
    for (let turn = 0; turn < 50; turn++) await new Promise(setImmediate);
    assert.ok(floods <= 2, `${floods} were read from at once`);
    while (floods < 8) await clock.pass(1);
    for (const { socket } of callers) socket.destroy();
  });

  it("opens 64 calls at most, and 256 together with all others: then the greediest goes", async () => {
    const refused: string[] = [];
    await using server = await serve([], { onRefused: (reason) => void refused.push(reason) });
    const callers = await Promise.all(Array.from({ length: 5 }, () => rawCaller(server.address)));
    for (const [nth, caller] of callers.entries()) {
      for (let index = 0; index < (nth === 0 ? 64 : 60); index++) caller.call(index, WATCH, Buffer.alloc(0));
      caller.read();
    }
    await closed(callers[0]!.socket);
    await using channel = dial(server.address);
    await channel.client(Health).check({});
    assert.deepEqual(refused, ["calls"]);
    assert.ok(callers.slice(1).every(({ socket }) => !socket.closed));
    for (const { socket } of callers) socket.destroy();
  });

  it("may not send a long message, though callers with a token may", async () => {
    await using server = await serve([rawService(echo, "token")], { token: TOKEN });
    await using channel = dial(server.address, { token: TOKEN });
    const long = Buffer.alloc(100_000);
    const question = record(channel, CHECK);
    question.call.write(long);
    question.call.halfClose();
    assert.match(String((await question.ended)?.cause), /RESOURCE_EXHAUSTED/);
    const call = record(channel);
    call.call.write(long);
    await call.received(1);
    call.call.halfClose();
    assert.equal(await call.ended, undefined);
  });
});

describe("a caller with a token", () => {
  it("runs more calls at once than a stranger may, while strangers fill their budget", async () => {
    const running: RawCall[] = [];
    await using server = await serve([rawService((call) => void running.push(call), "token")], { token: TOKEN });
    const strangers = await Promise.all(Array.from({ length: 4 }, () => rawCaller(server.address)));
    for (const caller of strangers) for (let index = 0; index < 64; index++) caller.call(index, WATCH, Buffer.alloc(0));
    await using channel = dial(server.address, { token: TOKEN });
    const calls = Array.from({ length: 400 }, () => record(channel));
    for (const { call } of calls) call.write(HELLO);
    await eventually("all calls run", () => running.length === 400);
    for (const call of running) call.end();
    for (const { ended } of calls) assert.equal(await ended, undefined);
    for (const { socket } of strangers) socket.destroy();
  });

  it("loses its connection if it takes nothing for the time that it may be silent", async () => {
    const clock = manualClock();
    const { server, caller, cancelled } = await unreadAnswer({ clock, stallMs: 60_000, ...ALONE });
    await using _server = server;
    await clock.pass(59_000);
    await clock.pass(3_000);
    await within(cancelled, "the call's end");
    caller.socket.destroy();
  });
});

describe("a server that shuts down", () => {
  it("ends although a connection was given up with bytes that its peer never reads", async () => {
    const { server, caller, cancelled } = await unreadAnswer({ keepaliveMs: 50, graceMs: 100 });
    await within(cancelled, "the keepalive gives the session up");
    await within(server[Symbol.asyncDispose](), "the shutdown", 2_000);
    caller.socket.destroy();
  });
});
