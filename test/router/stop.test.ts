// How a router ends while requests run.
import assert from "node:assert/strict";
import { ServiceError } from "../../services/common/errors.ts";
import { drainAndStop } from "../../services/router/stop.ts";
import { deferred, within } from "../support/waits.ts";
import { ENDING, type Script } from "./rest/support/relay.ts";
import { startRest, type Rest } from "./rest/support/rest.ts";

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

function stop(rest: Rest, graceMs: number): { stopped: Promise<void>; order: string[] } {
  const order: string[] = [];
  const part = (name: string) => ({ [Symbol.asyncDispose]: async () => void order.push(name) });
  const stopped = drainAndStop(
    {
      serving: rest.serving,
      http: rest.http,
      relay: { ...part("relay"), idle: async () => {}, legs: 0, run: rest.relay.run, prober: undefined as never },
      rpc: { ...part("rpc"), address: "", setServing: (serving) => void order.push(`serving ${serving}`) },
      directories: part("directories"),
      registry: part("registry"),
      registration: { ...part("registration"), update() {} },
      pool: { ...rest.pool, ...part("pool") },
      deadlines: { [Symbol.dispose]() {} },
      closing: new AbortController(),
      log: rest.logs.log,
    },
    graceMs,
  );
  return { stopped, order };
}

const BODY = { prompt: "hello", stream: true };

describe("a router that is stopped", () => {
  it("lets running streams end, and takes no new request meanwhile", async () => {
    const { script, end } = stream();
    await using rest = await startRest({ script });
    const response = await rest.post("/v1/completions", BODY);
    const { stopped, order } = stop(rest, 5_000);
    assert.deepEqual(order, ["serving false"]);
    assert.equal((await rest.post("/v1/completions", BODY)).status, 503);
    assert.equal((await fetch(`${rest.url}/readyz`)).status, 503);
    assert.equal((await fetch(`${rest.url}/livez`)).status, 200);
    end();
    assert.match(await response.text(), /\[DONE\]\n\n$/);
    await within(stopped, "the stop");
    assert.deepEqual(order, ["serving false", "registration", "directories", "registry", "rpc", "relay", "pool"]);
    await assert.rejects(fetch(`${rest.url}/livez`), "the port is closed");
  });

  it("ends streams that go on past the grace with an error event", async () => {
    const { script } = stream();
    await using rest = await startRest({ script });
    const response = await rest.post("/v1/completions", BODY);
    const { stopped } = stop(rest, 50);
    const text = await response.text();
    assert.match(text, /"error":\{"message":"The server was stopped before the answer was complete\. Try again\./);
    assert.match(text, /data: \[DONE\]\n\n$/);
    await within(stopped, "the stop");
    assert.equal(rest.receipts.list(1)[0]!.errorCode, "instance_unavailable");
  });

  it("is gone at once when nothing runs, kept connections or not", async () => {
    await using rest = await startRest();
    await (await rest.post("/v1/completions", { prompt: "hello" })).text();
    const startedMs = performance.now();
    await stop(rest, 30_000).stopped;
    assert.ok(performance.now() - startedMs < 1_000);
  });

  it("is not held up by a client that never finishes its request", async () => {
    await using rest = await startRest();
    const half = fetch(`${rest.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: new ReadableStream({ start: (controller) => controller.enqueue(Buffer.from("{")) }),
      duplex: "half",
    } as RequestInit).catch(() => "broken");
    await within(stop(rest, 100).stopped, "the stop");
    assert.equal(await half, "broken");
  });
});
