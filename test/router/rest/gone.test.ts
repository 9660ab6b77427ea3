// Clients that leave, or that read too slowly.
import assert from "node:assert/strict";
import { connect } from "node:net";
import { once } from "node:events";
import { ServiceError } from "../../../services/common/errors.ts";
import { deferred, eventually } from "../../support/waits.ts";
import { ENDING, untilGone, type Script } from "./support/relay.ts";
import { startRest, type Rest } from "./support/rest.ts";

const COMPLETIONS = "/v1/completions";
const BODY = { prompt: "hello" };
const STREAM = { prompt: "hello", stream: true };

describe("a client that leaves", () => {
  it("mid-stream ends its legs", async () => {
    await using rest = await startRest({
      script: (run) => {
        run.leg();
        run.sink.start();
        run.write("data: {}\n\n");
        return untilGone(run);
      },
    });
    const client = new AbortController();
    const response = await rest.post(COMPLETIONS, STREAM, { signal: client.signal });
    await response.body!.getReader().read();
    client.abort();
    await eventually("the legs are cancelled", () => rest.relay.runs[0]!.gone.aborted);
    await eventually("the receipt is closed", () => rest.serving.count === 0);
    const receipt = rest.receipts.list(1)[0]!;
    assert.deepEqual([receipt.outcome, receipt.status], ["cancelled", 200]);
    assert.equal(rest.logs.events("request ended").length, 1);
  });

  it("before the first byte ends its legs", async () => {
    await using rest = await startRest({ script: untilGone });
    const client = new AbortController();
    const response = rest.post(COMPLETIONS, BODY, { signal: client.signal }).catch(() => {});
    await eventually("the relay runs", () => rest.relay.runs.length === 1);
    client.abort();
    await response;
    await eventually("the request has ended", () => rest.serving.count === 0);
  });

  it("leaves the queue", async () => {
    await using rest = await startRest({ script: untilGone });
    rest.pool.set([
      { id: "p1", role: "prefill" },
      { id: "d1", role: "decode", slots: 1 },
    ]);
    const first = new AbortController();
    const second = new AbortController();
    const answers = [first, second].map(({ signal }) => rest.post(COMPLETIONS, BODY, { signal }).catch(() => {}));
    await eventually("both are in", () => rest.serving.count === 2);
    second.abort();
    await eventually("the one in the queue has ended", () => rest.serving.count === 1);
    assert.equal(rest.relay.runs.length, 1);
    first.abort();
    await Promise.all(answers);
  });

  it("in the middle of its body leaves nothing behind", async () => {
    await using rest = await startRest();
    const socket = connect(rest.port, "127.0.0.1");
    await once(socket, "connect");
    const half =
      "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{";
    await new Promise((resolve) => socket.write(half, resolve));
    socket.destroy();
    assert.equal((await rest.post(COMPLETIONS, BODY)).status, 200);
    assert.equal(rest.serving.count, 0);
  });
});

describe("a client that reads too slowly", () => {
  const chunk = `data: ${"x".repeat(16_000)}\n\n`;
  // More than the kernel buffers of a loopback connection.
  const CHUNKS = 2_000;

  /** Writes a long answer, and waits whenever the sink is full. */
  function longAnswer(): { script: Script; written: number } {
    const state = {
      written: 0,
      script: (async (run) => {
        run.leg();
        run.sink.start();
        const gone = new Promise<never>((_resolve, reject) => {
          run.gone.addEventListener("abort", () => reject(new ServiceError("cancelled", "gone")));
        });
        for (; state.written < CHUNKS; state.written += 1) {
          if (!run.write(chunk))
            await Promise.race([gone, new Promise<void>((resolve) => (run.sink.onDrain = resolve))]);
        }
        return ENDING;
      }) as Script,
    };
    return state;
  }

  /** Until the answer has stalled for a while, before its end. */
  async function untilHeld(state: { readonly written: number }): Promise<void> {
    let before = -1;
    let since = performance.now();
    await eventually("the answer is held back", () => {
      if (state.written !== before) since = performance.now();
      before = state.written;
      return before > 0 && before < CHUNKS && performance.now() - since > 60;
    });
  }

  /** A client that sends its request and reads nothing. */
  async function silentClient(rest: Rest) {
    const socket = connect(rest.port, "127.0.0.1");
    socket.pause();
    await once(socket, "connect");
    const body = JSON.stringify(STREAM);
    socket.write(
      `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    );
    return socket;
  }

  it("is paced, and gets the whole answer once it reads", async () => {
    const long = longAnswer();
    await using rest = await startRest({ script: long.script, bufferBytes: 65_536 });
    const socket = await silentClient(rest);
    await untilHeld(long);
    let bytes = 0;
    let tail = "";
    socket.setEncoding("latin1").on("data", (data: string) => {
      bytes += data.length;
      tail = (tail + data).slice(-100);
    });
    socket.resume();
    await eventually("the end arrives", () => tail.endsWith("data: [DONE]\n\n\r\n0\r\n\r\n"));
    assert.ok(bytes > CHUNKS * chunk.length);
    assert.equal(rest.receipts.list(1)[0]!.bodyBytes, CHUNKS * chunk.length + "data: [DONE]\n\n".length);
    socket.destroy();
  });

  it("is disconnected when it reads nothing at all", async () => {
    const long = longAnswer();
    await using rest = await startRest({ script: long.script, bufferBytes: 65_536, stallMs: 150 });
    const socket = await silentClient(rest);
    await eventually("it is cut", () => rest.serving.count === 0 && long.written > 0);
    const receipt = rest.receipts.list(1)[0]!;
    assert.equal(receipt.outcome, "cancelled");
    assert.match(receipt.error, /read next to nothing for 150 ms/);
    socket.destroy();
  });

  it("does not make a quiet stream look stalled", async () => {
    const go = deferred();
    await using rest = await startRest({
      stallMs: 50,
      script: async ({ sink, write }) => {
        sink.start();
        write("data: {}\n\n");
        await go.promise;
        return ENDING;
      },
    });
    const response = await rest.post(COMPLETIONS, STREAM);
    setTimeout(go.resolve, 200);
    assert.match(await response.text(), /\[DONE\]/);
  });
});
