// Clients that send or read too slowly.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { takenBytes, watchReader } from "../../../services/router/rest/answer.ts";
import { manualClock } from "../../support/manual-clock.ts";
import { deferred, eventually, within } from "../../support/waits.ts";
import { ENDING, type Script } from "./support/relay.ts";
import { startRest, untilNoBodyIsHeld, type Rest } from "./support/rest.ts";

const HEAD = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
const BODY = '{"prompt":"x"}';
const REQUEST = `${HEAD}content-length: ${BODY.length}\r\n\r\n${BODY}`;

async function open(rest: Rest): Promise<Socket> {
  const socket = connect(rest.port, "127.0.0.1")
    .setEncoding("utf8")
    .on("error", () => {});
  await once(socket, "connect");
  return socket;
}

/** Sends `text` a byte at a time while the connection is open, and returns the answer. */
async function drip(socket: Socket, text: string): Promise<string> {
  let answer = "";
  socket.on("data", (data: string) => (answer += data));
  const closed = once(socket, "close");
  for (let at = 0; !socket.destroyed && at < text.length; at += 1) {
    socket.write(text[at]!);
    await sleep(5);
  }
  await within(closed, "the cut");
  return answer;
}

describe("a client that sends a byte at a time", () => {
  it("is cut with a 408 when its head takes too long", async () => {
    await using rest = await startRest({ headMs: 150 });
    assert.match(
      await drip(await open(rest), `${HEAD}x-filler: ${"x".repeat(8_000)}\r\n\r\n`),
      /^HTTP\/1\.1 408 .*took too long to arrive/s,
    );
  });

  it("is cut when it sends nothing at all", async () => {
    await using rest = await startRest({ headMs: 150 });
    const socket = await open(rest);
    socket.resume();
    await within(once(socket, "close"), "the cut");
  });

  for (const [how, head, text] of [
    ["of a length that it gave", "content-length: 20000\r\n\r\n", "x".repeat(20_000)],
    ["in chunks", "transfer-encoding: chunked\r\n\r\n", "1\r\nx\r\n".repeat(4_000)],
    ["that it asked permission for", "expect: 100-continue\r\ncontent-length: 20000\r\n\r\n", "x".repeat(20_000)],
  ] as const) {
    it(`is cut with a 408 when its body takes too long, ${how}, and holds no memory after it`, async () => {
      await using rest = await startRest({ bodyMs: 200, bodyTotalBytes: 30_000 });
      const socket = await open(rest);
      socket.write(HEAD + head);
      assert.match(await drip(socket, text), /HTTP\/1\.1 408 .*took too long to arrive/s);
      const refused = /tandem_requests_total\{path="\/v1\/completions",outcome="refused",code="cancelled"\} 1/;
      await eventually("it is refused", async () => refused.test(await rest.metrics.text()));
      assert.equal(rest.relay.runs.length, 0);
      await untilNoBodyIsHeld(rest, 30_000);
    });
  }

  it("is served if its request is complete in time, however long the answer takes", async () => {
    const running = deferred();
    const lateCut = deferred();
    const script: Script = async ({ write }) => {
      running.resolve();
      await lateCut.promise;
      write("{}");
      return ENDING;
    };
    await using rest = await startRest({ script, headMs: 1_000, bodyMs: 1_000 });
    const response = rest.post("/v1/completions", { prompt: "x" });
    await within(running.promise, "its run");
    // One that came later has been cut by now for being late.
    const other = (await open(rest)).resume();
    await within(once(other, "close"), "the cut of another");
    lateCut.resolve();
    assert.equal((await response).status, 200);
  });
});

describe("a client that reads nothing", () => {
  /** More than the kernel holds of a loopback connection. */
  const LARGE = Buffer.alloc(16 << 20, "x").toString();

  it("is cut, also if its answer does not stream", async () => {
    await using rest = await startRest({ stallMs: 150, script: async ({ write }) => (write(LARGE), ENDING) });
    const socket = (await open(rest)).pause();
    socket.write(REQUEST);
    await eventually("it is answered", () => rest.relay.runs.length === 1);
    await eventually("it is cut", () => rest.connections.size === 0);
    socket.destroy();
  });

  it("is cut, also if it asks for error after error, or page after page", async () => {
    for (const text of [
      "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
      "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    ]) {
      await using rest = await startRest({ stallMs: 150 });
      const socket = (await open(rest)).pause();
      const before = process.memoryUsage().rss;
      const block = text.repeat(500);
      await eventually(
        "it is cut",
        () => {
          while (!socket.destroyed && socket.writableLength < 1 << 20) socket.write(block);
          return rest.connections.size === 0;
        },
        15_000,
      ); // The kernel holds megabytes of small answers before anything waits.
      assert.ok(process.memoryUsage().rss - before < 300 << 20, "what waits for it is bounded");
      socket.destroy();
    }
  });

  it("is told from one that reads slowly by what the kernel has taken of a single large write", async () => {
    let response: ServerResponse | undefined;
    const server = createServer((_, res) => (response = res).end(LARGE)).listen(0, "127.0.0.1");
    await once(server, "listening");
    const socket = connect((server.address() as AddressInfo).port, "127.0.0.1").pause();
    socket.write("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    await eventually("the kernel has some", () => response !== undefined && takenBytes(response) > 0);
    assert.ok(takenBytes(response!) < LARGE.length, "and not all");
    socket.resume();
    // A response that has ended lets go of its socket.
    await eventually("the kernel has all", () => response!.writableFinished || takenBytes(response!) >= LARGE.length);
    socket.destroy();
    server.close();
  });

  it("is also one that takes a byte a second, and no other", async () => {
    for (const [bytesPerS, expected] of [
      [1, [60_000]],
      [120, [60_000]],
      [136, []],
      [10_000, []],
    ] as const) {
      const clock = manualClock(0);
      const cutMs: number[] = [];
      const watch = watchReader(() => Math.floor((bytesPerS * clock.nowMs()) / 1_000), {
        stallMs: 60_000,
        clock,
        onStall: () => cutMs.push(clock.nowMs()),
      });
      watch.start();
      watch.start();
      clock.advance(600_000);
      assert.deepEqual(cutMs, expected, `${bytesPerS} bytes a second`);
      watch.stop();
      assert.equal(clock.pending, 0);
    }
  });

  it("is not confused with one that asked for a second answer before it got the first", async () => {
    let runs = 0;
    const script: Script = async ({ write }) => {
      if ((runs += 1) === 2) await sleep(400);
      write(`{"run":${runs}}`);
      return ENDING;
    };
    await using rest = await startRest({ stallMs: 100, script });
    const socket = await open(rest);
    let answer = "";
    socket.on("data", (data: string) => (answer += data));
    socket.write(REQUEST + REQUEST);
    await eventually("both answers", () => answer.includes('{"run":1}') && answer.includes('{"run":2}'));
    socket.destroy();
  });
});
