// How requests end when the router stops.
import assert from "node:assert/strict";
import { ServiceError } from "../../../services/common/errors.ts";
import { manualClock } from "../../support/manual-clock.ts";
import { deferred, eventually, within } from "../../support/waits.ts";
import { ENDING, type Script } from "../rest/support/relay.ts";
import { startRest } from "../rest/support/rest.ts";

/** A stream of one event that goes on until the test says so, or until it is ended. */
function stream(): { script: Script; end: () => void } {
  const end = deferred();
  return {
    end: end.resolve,
    script: async (run) => {
      run.leg();
      run.sink.start();
      run.write('data: {"choices":[]}\n\n');
      const gone = new Promise<never>((_resolve, reject) => {
        run.gone.addEventListener("abort", () => reject(new ServiceError("cancelled", "gone")));
      });
      await Promise.race([end.promise, gone]);
      return ENDING;
    },
  };
}

const BODY = { prompt: "hello", stream: true };

describe("a router that drains", () => {
  it("lets running streams end, and takes no new request meanwhile", async () => {
    const { script, end } = stream();
    await using rest = await startRest({ script });
    const response = await rest.post("/v1/completions", BODY);
    const over = rest.serving.drain(5_000);
    assert.equal((await rest.post("/v1/completions", BODY)).status, 503);
    assert.equal((await fetch(`${rest.url}/readyz`)).status, 503);
    assert.equal((await fetch(`${rest.url}/livez`)).status, 200);
    end();
    assert.match(await response.text(), /\[DONE\]\n\n$/);
    await within(over, "the drain");
  });

  it("ends streams that go on past the grace with an error event", async () => {
    const { script } = stream();
    await using rest = await startRest({ script });
    const response = await rest.post("/v1/completions", BODY);
    const over = rest.serving.drain(50);
    const text = await response.text();
    assert.match(text, /"error":\{"message":"The server was stopped before the answer was complete\. Try again\./);
    assert.match(text, /data: \[DONE\]\n\n$/);
    await within(over, "the drain");
    assert.equal(rest.receipts.list(1)[0]!.errorCode, "instance_unavailable");
  });

  it("ends at once if nothing runs, with kept connections or without", async () => {
    await using rest = await startRest();
    await (await rest.post("/v1/completions", { prompt: "hello" })).text();
    await within(rest.serving.drain(3_600_000), "the drain");
    await within(rest.http[Symbol.asyncDispose](), "the end of the server");
    await assert.rejects(fetch(`${rest.url}/livez`), "the port is closed");
  });

  it("ends at most three quarters of a second after its grace", async () => {
    const { script } = stream();
    const clock = manualClock();
    await using rest = await startRest({ script, clock });
    rest.relay.idle = () => new Promise(() => {});
    const response = await rest.post("/v1/completions", BODY);
    const over = rest.serving.drain(30_000);
    clock.advance(29_999);
    assert.equal(rest.serving.count, 1);
    clock.advance(1);
    await response.text();
    // The instances settle the rest by themselves.
    await eventually("it waits for that", () => rest.serving.count === 0 && clock.pending === 1);
    clock.advance(500);
    await within(over, "the drain");
  });

  it("is not held up by a client that never finishes its request", async () => {
    await using rest = await startRest();
    const half = fetch(`${rest.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: new ReadableStream({ start: (controller) => controller.enqueue(Buffer.from("{")) }),
      duplex: "half",
    } as RequestInit).catch(() => "broken");
    await within(rest.serving.drain(100), "the drain");
    await within(rest.http[Symbol.asyncDispose](), "the end of the server");
    assert.equal(await half, "broken");
  });
});
