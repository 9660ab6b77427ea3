// A channel that keeps a heartbeat, and a server whose callers do.
import assert from "node:assert/strict";
import { type Http2Session, type ServerHttp2Stream, connect, constants } from "node:http2";
import { DecodeService } from "#gen/tandem/decode/v1/decode_pb.js";
import type { Clock } from "../../services/common/clock.ts";
import { ServiceError } from "../../services/common/errors.ts";
import type { ChannelState } from "../../services/rpc/channel.ts";
import { HEARTBEAT_HEADER } from "../../services/rpc/heartbeat.ts";
import type { RawCall } from "../../services/rpc/service.ts";
import { manualClock } from "../support/manual-clock.ts";
import { deferred, eventually, freePort, within } from "../support/waits.ts";
import {
  DECODE,
  dial,
  dialBeating,
  eachEndedOnce,
  lossOf,
  rawService,
  record,
  serve,
  serveRaw,
  startChild,
  startRogue,
  untilState,
  HELLO,
  codeOf,
  echo,
} from "./fixture.ts";

describe("a channel with a heartbeat", () => {
  afterEach(eachEndedOnce);

  it("connects by itself, and sends its message each 500 ms and when the message has changed", async () => {
    let said = 0;
    let header: string | undefined;
    const clock = manualClock();
    await using server = await serveRaw(
      (call) => {
        header = call.header(HEARTBEAT_HEADER);
        call.onMessage = (message) => {
          said++;
          call.write(message);
        };
      },
      { clock },
    );
    await using channel = dialBeating(server.address, { clock });
    await eventually("the first", () => said === 1);
    assert.equal(header, "500");
    for (let count = 2; count < 6; count++) {
      await clock.pass(500);
      await eventually(`beat ${count}`, () => said === count);
    }
    channel.beat();
    await eventually("the change", () => said === 6);
  });

  it("sends no PING, which servers other than Node's would end the connection for", async () => {
    const sessions = new Set<Http2Session>();
    let pings = 0;
    await using rogue = await startRogue((stream) => {
      if (!sessions.has(stream.session!)) stream.session!.on("ping", () => pings++);
      sessions.add(stream.session!);
      stream.respond({ ":status": 200, "content-type": "application/grpc+proto" });
      stream.on("data", (bytes: Buffer) => stream.write(bytes));
    });
    const clock = manualClock();
    await using channel = dialBeating(rogue.address, { clock });
    const { call, received } = record(channel);
    for (let count = 1; count <= 20; count++) {
      call.write(HELLO);
      await received(count); // So that the server's other answers are here, too.
      await clock.pass(500);
    }
    assert.deepEqual([sessions.size, pings, channel.state.kind], [1, 0, "up"]);
  });

  it("is up again by itself after its server was restarted", async () => {
    const listen = `127.0.0.1:${await freePort()}`;
    const states: string[] = [];
    await using channel = dialBeating(listen, { onState: ({ kind }) => states.push(kind) });
    await untilState(channel, "down");
    const first = await serveRaw(echo, { listen });
    await untilState(channel, "up");
    await first[Symbol.asyncDispose]();
    await untilState(channel, "down");
    await using _second = await serveRaw(echo, { listen });
    await untilState(channel, "up");
    assert.deepEqual(states.slice(0, 3), ["connecting", "down", "connecting"]);
  });

  it("reports why its peer refused it, and tries again", async () => {
    let refusals = 2;
    await using server = await serveRaw((call) => {
      if (refusals-- > 0) call.fail(new ServiceError("instance_busy", "Too many watch."));
      else echo(call);
    });
    const refused: string[] = [];
    const answered = deferred();
    await using channel = dial(server.address, {
      heartbeat: {
        method: DecodeService.method.decode,
        message: () => ({}),
        onMessage: () => answered.resolve(),
        onRefused: (error) => refused.push(codeOf(error)),
      },
    });
    await within(answered.promise, "an answer");
    assert.deepEqual(refused, ["instance_busy", "instance_busy"]);
    assert.equal(channel.state.kind, "up");
  });

  it("suspects a stopped server, ends the calls that it has not answered, and trusts it when a byte comes again", async () => {
    await using child = await startChild("rpc");
    const clock = manualClock();
    await using channel = dialBeating(child.address, { clock });
    const running = record(channel);
    running.call.write(HELLO);
    await running.received(1);
    channel.dropUnanswered(); // It is not suspect.
    child.signal("SIGSTOP");
    const fresh = record(channel);
    fresh.call.write(HELLO);
    await clock.pass(1_500);
    assert.equal(channel.state.kind, "suspect");
    channel.dropUnanswered();
    assert.equal(codeOf(await fresh.ended), "instance_lost");
    child.signal("SIGCONT");
    running.call.write(HELLO);
    await running.received(2);
    await clock.pass(125);
    assert.equal(channel.state.kind, "up");
    running.call.halfClose();
    assert.equal(codeOf(await running.ended), "ok");
  });

  it("fails all calls when the server's process is stopped, and those on the next connection too", async () => {
    await using child = await startChild("rpc");
    const clock = manualClock();
    const states: ChannelState[] = [];
    await using channel = dialBeating(child.address, { clock, onState: (state) => states.push(state) });
    const calls = [record(channel), record(channel)];
    for (const { call, received } of calls) {
      call.write(HELLO);
      await received(1);
    }
    child.signal("SIGSTOP");
    await clock.pass(2_250);
    for (const { ended } of calls) assert.equal(codeOf(await ended), "instance_lost");
    assert.equal(lossOf(states[3]!), "silent");
    // The kernel still accepts for it.
    const next = record(channel);
    await untilState(channel, "up");
    await clock.pass(2_250);
    assert.equal(codeOf(await next.ended), "instance_lost");
    child.signal("SIGCONT");
    assert.deepEqual(await channel.unary(DECODE, HELLO), HELLO);
  });

  it("notices that a server is silent which sent GOAWAY before", async () => {
    await using child = await startChild("rpc");
    const clock = manualClock();
    await using channel = dialBeating(child.address, { clock });
    const { call, ended, received } = record(channel);
    call.write(HELLO);
    await received(1);
    child.signal("SIGTERM");
    await eventually("GOAWAY", () => channel.state.kind !== "up");
    for (let count = 2; count <= 10; count++) {
      call.write(HELLO);
      await received(count);
      await clock.pass(500);
    }
    child.signal("SIGSTOP");
    await clock.pass(2_500);
    assert.equal(codeOf(await ended), "instance_lost");
  });

  it("beats on the old connection and on the new one after GOAWAY, and reports the answers of the new one alone", async () => {
    const answers: (() => void)[] = [];
    let goaway = (): void => {};
    await using rogue = await startRogue((stream) => {
      goaway = () => stream.session!.goaway();
      stream.respond({ ":status": 200, "content-type": "application/grpc+proto" }, { waitForTrailers: true });
      stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
      stream.resume().on("end", () => stream.end());
      answers.push(() => stream.write(Buffer.alloc(5)));
    });
    const clock = manualClock();
    let heard = 0;
    await using channel = dial(rogue.address, {
      clock,
      heartbeat: { method: DecodeService.method.decode, message: () => ({}), onMessage: () => heard++ },
    });
    const { call, ended, received } = record(channel);
    await eventually("both calls", () => answers.length === 2);
    goaway();
    await untilState(channel, "down");
    await clock.pass(50);
    await eventually("the heartbeat on the new connection", () => answers.length === 3);
    const [old, running, fresh] = answers as [() => void, () => void, () => void];
    old();
    running();
    await received(1);
    assert.equal(heard, 0);
    fresh();
    await eventually("the new one", () => heard === 1);
    call.halfClose();
    assert.equal(codeOf(await ended), "ok");
    await eventually("the end of the old connection", () => rogue.sockets.size === 1);
  });

  it("is not opened again on a connection that takes no more calls, and those that run go on", async () => {
    const streams: ServerHttp2Stream[] = [];
    await using rogue = await startRogue((stream) => {
      streams.push(stream);
      stream.respond({ ":status": 200, "content-type": "application/grpc+proto" }, { waitForTrailers: true });
      stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
      stream.resume().on("end", () => stream.end());
    });
    const clock = manualClock();
    await using channel = dialBeating(rogue.address, { clock });
    const { call, ended, received } = record(channel);
    await eventually("both calls", () => streams.length === 2);
    streams[0]!.session!.goaway();
    streams[0]!.end(); // The heartbeat, as a server that shuts down ends it.
    await eventually("GOAWAY", () => channel.state.kind !== "up");
    rogue.server.close();
    await clock.pass(5_000);
    streams[1]!.write(Buffer.alloc(5));
    await received(1);
    call.halfClose();
    assert.equal(codeOf(await ended), "ok");
  });

  it("does not mistake a pause of its own process, or of the whole machine, for the server's silence", async () => {
    await using child = await startChild("rpc");
    const clock = manualClock();
    const states: string[] = [];
    await using channel = dialBeating(child.address, { clock, onState: ({ kind }) => states.push(kind) });
    const { call, ended, received } = record(channel);
    call.write(HELLO);
    await received(1);
    clock.stall(10_000);
    call.write(HELLO);
    await received(2);
    child.signal("SIGSTOP");
    await clock.pass(600); // A beat goes out that the stopped server can't answer.
    clock.stall(10_000);
    child.signal("SIGCONT");
    call.write(HELLO);
    await received(3);
    await clock.pass(1_000);
    call.halfClose();
    assert.equal(codeOf(await ended), "ok");
    assert.deepEqual(states, ["connecting", "up"]);
  });
});

describe("a caller that has promised heartbeats", () => {
  /** Timers of the server itself: while there are connections, its door looks at them from time to time. */
  const DOOR = 1;
  /** Its keepalive, which would find a silent caller as well, is an hour away. */
  const serveWatching = (handler: (call: RawCall) => void, clock: Clock) =>
    serve([rawService(handler, "token")], { clock, keepaliveMs: 3_600_000 });

  it("is doubted when four beats are missing, and has all its calls cancelled when twenty-four are", async () => {
    const clock = manualClock();
    const [doubted, cancelled] = [deferred(), deferred()];
    const told: string[] = [];
    await using server = await serveWatching((call) => {
      if (call.header(HEARTBEAT_HEADER) !== undefined) return echo(call);
      call.onCallerSilent = () => (told.push("silent"), doubted.resolve());
      call.onCancel = () => (told.push("cancelled"), cancelled.resolve());
      call.write(HELLO);
    }, clock);
    await using child = await startChild("beating", server.address);
    child.signal("SIGSTOP");
    await clock.pass(2_000);
    assert.deepEqual(told, []);
    await clock.pass(500);
    await within(doubted.promise, "doubt");
    await clock.pass(9_000);
    assert.deepEqual(told, ["silent"]);
    await clock.pass(1_000);
    await within(cancelled.promise, "cancel");
  });

  it("keeps its running calls through a pause of six seconds", async () => {
    const clock = manualClock();
    const doubted = deferred();
    let answer: RawCall | undefined;
    await using server = await serveWatching((call) => {
      if (call.header(HEARTBEAT_HEADER) !== undefined) return echo(call);
      call.onCallerSilent = doubted.resolve;
      call.onCancel = () => assert.fail("it was cancelled");
      answer = call;
    }, clock);
    const paused = manualClock(); // The caller's own clock: it sends no heartbeat until this clock moves.
    await using channel = dialBeating(server.address, { clock: paused });
    const { call, ended, received } = record(channel);
    call.write(HELLO);
    await eventually("the call", () => answer !== undefined);
    await clock.pass(6_000);
    await within(doubted.promise, "doubt");
    answer!.write(HELLO); // What it wrote meanwhile waits in the socket.
    paused.stall(6_000);
    await received(1);
    await clock.pass(6_000);
    answer!.end();
    assert.equal(codeOf(await ended), "ok");
    assert.equal(channel.state.kind, "up");
  });

  it("is not held responsible for a pause of the server", async () => {
    const clock = manualClock();
    await using server = await serveWatching(echo, clock);
    await using channel = dialBeating(server.address, { clock: manualClock() });
    const { call, ended, received } = record(channel);
    call.write(HELLO);
    await received(1);
    clock.stall(60_000);
    call.write(HELLO);
    await received(2);
    call.halfClose();
    assert.equal(codeOf(await ended), "ok");
    assert.equal(channel.state.kind, "up");
  });

  it("is not held to its promise once the call that carries it is half-closed, cancelled or over", async () => {
    for (const end of ["half-close", "cancel", "end"] as const) {
      const clock = manualClock();
      let call: RawCall | undefined;
      await using server = await serveWatching((opened) => (call = opened), clock);
      const session = connect(`http://${server.address}`);
      const stream = session.request({
        ":method": "POST",
        ":path": DECODE,
        "content-type": "application/grpc+proto",
        te: "trailers",
        [HEARTBEAT_HEADER]: "500",
      });
      stream.on("error", () => {}).resume();
      await eventually("it is watched", () => clock.pending === DOOR + 1);
      if (end === "half-close") stream.end();
      else if (end === "cancel") stream.close(constants.NGHTTP2_CANCEL);
      else call!.end();
      await eventually(`it is watched no more after ${end}`, () => clock.pending === DOOR);
      session.destroy();
    }
  });

  it("is not watched because of calls that need no token", async () => {
    const clock = manualClock();
    await using server = await serve([rawService(echo, "open")], { clock });
    await using channel = dialBeating(server.address);
    const { call, received } = record(channel);
    call.write(HELLO);
    await received(1);
    assert.equal(clock.pending, DOOR);
    call.cancel();
  });
});
