import assert from "node:assert/strict";
import { constants } from "node:http2";
import { ServiceError } from "../../services/common/errors.ts";
import { frame } from "../../services/rpc/deframer.ts";
import type { RawCall } from "../../services/rpc/service.ts";
import { logSink } from "../support/log-sink.ts";
import { deferred, within } from "../support/waits.ts";
import { DECODE, dial, eachEndedOnce, record, serveRaw, startRogue } from "./fixture.ts";

const HELLO = Buffer.from("hello");
const GRPC = { ":status": 200, "content-type": "application/grpc+proto" };
/** `close()` ends its calls with `cancelled`; tests that leave a call open expect that. */
const codeOf = (error: ServiceError | undefined): string => error?.code ?? "ok";

const echo = (call: RawCall): void => {
  call.onMessage = (message) => void call.write(message);
  call.onHalfClose = () => call.end();
};

describe("a call of the thin client", () => {
  afterEach(eachEndedOnce);

  it("ends well with the server's end, after all its messages", async () => {
    await using server = await serveRaw(echo);
    await using channel = dial(server.address);
    const { call, messages, ended } = record(channel);
    for (let index = 0; index < 100; index++) call.write(Buffer.from([index]));
    call.halfClose();
    assert.equal(codeOf(await ended), "ok");
    assert.deepEqual(
      messages,
      Array.from({ length: 100 }, (_, index) => Buffer.from([index])),
    );
  });

  it("carries empty and long messages both ways", async () => {
    await using server = await serveRaw(echo);
    await using channel = dial(server.address);
    const { call, messages, ended } = record(channel);
    const sent = [Buffer.alloc(0), Buffer.alloc(5_000_000, 3), Buffer.alloc(0), Buffer.from("end")];
    for (const message of sent) call.write(message);
    call.halfClose();
    assert.equal(codeOf(await ended), "ok");
    assert.ok(sent.every((message, index) => messages[index]!.equals(message)));
  });

  it("ends well if the server ends before the client does", async () => {
    await using server = await serveRaw((call) => call.end());
    await using channel = dial(server.address);
    assert.equal(codeOf(await record(channel).ended), "ok");
  });

  it("fails with the server's error before the first message", async () => {
    await using server = await serveRaw((call) =>
      call.fail(new ServiceError("instance_busy", "No slot: 100 % full.", { retryAfterS: 2 })),
    );
    await using channel = dial(server.address);
    const error = await record(channel).ended;
    assert.equal(codeOf(error), "instance_busy");
    assert.equal(error!.message, "No slot: 100 % full.");
    assert.equal(error!.retryAfterS, 2);
  });

  it("fails with the server's error in mid-stream, after the messages before it", async () => {
    await using server = await serveRaw((call) => {
      call.write(HELLO);
      call.fail(new ServiceError("kv_transfer_failed", "The KV did not arrive."));
    });
    await using channel = dial(server.address);
    const { messages, ended } = record(channel);
    assert.equal(codeOf(await ended), "kv_transfer_failed");
    assert.deepEqual(messages, [HELLO]);
  });

  it("fails if its method is not served", async () => {
    await using server = await serveRaw(echo);
    await using channel = dial(server.address);
    assert.equal(codeOf(await record(channel, "/no.Such/Method").ended), "internal");
  });

  it("fails as lost when its connection is killed in the middle of a message", async () => {
    await using rogue = await startRogue((stream) => {
      stream.respond(GRPC);
      stream.write(Buffer.concat([frame(HELLO), frame(Buffer.alloc(100)).subarray(0, 50)]));
    });
    await using channel = dial(rogue.address);
    const { messages, ended, received } = record(channel);
    await received(1);
    for (const socket of rogue.sockets) socket.resetAndDestroy();
    assert.equal(codeOf(await ended), "instance_lost");
    assert.deepEqual(messages, [HELLO]);
    assert.equal(channel.state.kind === "up", false);
  });

  it("fails as lost when the answer ends without a status", async () => {
    await using rogue = await startRogue((stream) => {
      stream.respond(GRPC);
      stream.end(frame(HELLO));
    });
    await using channel = dial(rogue.address);
    assert.equal(codeOf(await record(channel).ended), "instance_lost");
  });

  it("fails as lost when the status is OK but a message is cut short", async () => {
    await using rogue = await startRogue((stream) => {
      stream.respond(GRPC, { waitForTrailers: true });
      stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
      stream.end(frame(HELLO).subarray(0, 7));
    });
    await using channel = dial(rogue.address);
    assert.equal(codeOf(await record(channel).ended), "instance_lost");
  });

  for (const [name, status, expected] of [
    ["loses", "0", "instance_lost"],
    ["keeps", "8", "internal"],
  ] as const) {
    it(`${name} the status ${status} when its connection breaks before all messages were read`, async () => {
      await using rogue = await startRogue((stream) => {
        stream.respond(GRPC, { waitForTrailers: true });
        stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": status }));
        stream.end(frame(Buffer.alloc(200_000)));
      });
      await using channel = dial(rogue.address);
      const slow = record(channel);
      slow.call.pause();
      // Its answer comes after the other's on the same connection.
      assert.equal((await record(channel).ended) === undefined, status === "0");
      for (const socket of rogue.sockets) socket.resetAndDestroy();
      assert.equal(codeOf(await slow.ended), expected);
      assert.equal(slow.messages.length, 0);
    });
  }

  for (const [name, code, expected] of [
    ["REFUSED_STREAM", constants.NGHTTP2_REFUSED_STREAM, "instance_unavailable"],
    ["INTERNAL_ERROR", constants.NGHTTP2_INTERNAL_ERROR, "instance_lost"],
    ["CANCEL", constants.NGHTTP2_CANCEL, "instance_lost"],
  ] as const) {
    it(`fails with ${expected} when the server resets it with ${name}`, async () => {
      await using rogue = await startRogue((stream) => stream.close(code));
      await using channel = dial(rogue.address);
      assert.equal(codeOf(await record(channel).ended), expected);
    });
  }

  it("fails if the peer does not speak gRPC, or not even HTTP/2", async () => {
    await using rogue = await startRogue((stream) => {
      stream.respond({ ":status": 404, "content-type": "text/html" });
      stream.end("<h1>Not found</h1>");
    });
    await using channel = dial(rogue.address);
    assert.equal(codeOf(await record(channel).ended), "internal");
  });

  it("fails on a message over its limit, and says so", async () => {
    await using server = await serveRaw(echo);
    await using channel = dial(server.address, { messageLimitBytes: 1000 });
    const { call, ended } = record(channel);
    call.write(Buffer.alloc(1001));
    const error = await ended;
    assert.equal(codeOf(error), "internal");
    assert.match(error!.message, /1001 bytes/);
  });

  it("fails when its time is up, and tells the server", async () => {
    const cancelled = deferred();
    await using server = await serveRaw((call) => (call.onCancel = cancelled.resolve));
    await using channel = dial(server.address);
    assert.equal(codeOf(await record(channel, DECODE, { timeoutMs: 50 }).ended), "deadline_exceeded");
    await within(cancelled.promise, "cancel at the server");
  });

  it("can be cancelled twice, before the connection is there", async () => {
    await using server = await serveRaw(echo);
    await using channel = dial(server.address);
    const { call, ended } = record(channel);
    call.cancel();
    call.cancel();
    assert.equal(call.write(HELLO), true);
    call.halfClose();
    assert.equal(codeOf(await ended), "cancelled");
  });

  it("gets no message after it was cancelled from within one", async () => {
    const cancelled = deferred();
    await using server = await serveRaw((call) => {
      call.onCancel = cancelled.resolve;
      for (let index = 0; index < 10; index++) call.write(HELLO);
    });
    await using channel = dial(server.address);
    let count = 0;
    const ended = deferred<ServiceError | undefined>();
    const call = channel.open(DECODE, {
      onMessage() {
        count++;
        call.cancel();
      },
      onEnd: ended.resolve,
    });
    assert.equal(codeOf(await ended.promise), "cancelled");
    assert.equal(count, 1);
    await within(cancelled.promise, "cancel at the server");
  });

  it("fails alone, with the stack in the log, when its handler throws", async () => {
    await using server = await serveRaw(echo);
    const { log, events } = logSink();
    await using channel = dial(server.address, { log });
    const ended = deferred<ServiceError | undefined>();
    const call = channel.open(DECODE, {
      onMessage() {
        throw new TypeError("a bug");
      },
      onEnd: ended.resolve,
    });
    call.write(HELLO);
    assert.equal(codeOf(await ended.promise), "internal");
    assert.match(JSON.stringify(events("call handler failed unexpectedly")), /a bug/);
    assert.deepEqual(await channel.unary(DECODE, HELLO), HELLO);
  });

  it("is held back when the server stops reading, and goes on when it reads again", async () => {
    const paused = deferred<RawCall>();
    let bytes = 0;
    await using server = await serveRaw((call) => {
      call.onMessage = (message) => (bytes += message.length);
      call.onHalfClose = () => call.end();
      call.pause();
      paused.resolve(call);
    });
    await using channel = dial(server.address);
    const { call, ended, drained } = record(channel);
    const serverCall = await paused.promise;
    const message = Buffer.alloc(10_000);
    let sent = 0;
    while (sent < 10_000_000) {
      sent += message.length;
      if (!call.write(message)) break;
    }
    assert.ok(sent < 2_000_000, `${sent} bytes were taken by a server that does not read`);
    const drain = drained();
    serverCall.resume();
    await drain;
    call.halfClose();
    assert.equal(codeOf(await ended), "ok");
    assert.equal(bytes, sent);
  });

  it("holds the server back while it is paused", async () => {
    let written = 0;
    const full = deferred();
    const message = Buffer.alloc(10_000);
    await using server = await serveRaw((call) => {
      const more = (): void => {
        while (written < 500) {
          written++;
          if (!call.write(message)) return full.resolve();
        }
        call.end();
      };
      call.onDrain = more;
      more();
    });
    await using channel = dial(server.address);
    const { call, messages, ended } = record(channel);
    call.pause();
    await full.promise;
    // Another call on the same connection is not held back with it.
    assert.equal(codeOf(await record(channel, "/no.Such/Method").ended), "internal");
    assert.ok(written < 300, `${written} messages were written to a client that does not read`);
    call.resume();
    assert.equal(codeOf(await ended), "ok");
    assert.equal(messages.length, 500);
  });

  it("may be open to the same server a thousand times at once", async () => {
    await using server = await serveRaw(echo);
    await using channel = dial(server.address);
    const answers = await Promise.all(
      Array.from({ length: 1000 }, (_, index) => channel.unary(DECODE, Buffer.from(String(index)))),
    );
    answers.forEach((answer, index) => assert.equal(answer.toString(), String(index)));
  });
});

describe("a unary call of the thin client", () => {
  it("fails when the peer answers with no message, or two", async () => {
    let count = 0;
    await using server = await serveRaw((call) => {
      for (let index = 0; index < count; index++) call.write(HELLO);
      call.end();
    });
    await using channel = dial(server.address);
    await assert.rejects(channel.unary(DECODE, HELLO), { code: "internal" });
    count = 2;
    await assert.rejects(channel.unary(DECODE, HELLO), { code: "internal" });
  });

  it("can be cancelled", async () => {
    const cancelled = deferred();
    await using server = await serveRaw((call) => (call.onCancel = cancelled.resolve));
    await using channel = dial(server.address);
    const started = deferred<() => void>();
    const answer = channel.unary(DECODE, HELLO, { onCancelable: started.resolve });
    (await started.promise)();
    await assert.rejects(answer, { code: "cancelled" });
  });
});
