// client.ts and typed-call.ts together: our client, grpc-js as the server.
import assert from "node:assert/strict";
import { setImmediate } from "node:timers/promises";
import { ServiceError } from "../../services/common/errors.ts";
import { dialRpc, type RpcChannel } from "../../services/rpc/channel.ts";
import { logSink } from "../support/log-sink.ts";
import { deferred, freePort, within } from "../support/waits.ts";
import { serve, startRogue } from "./fixture.ts";
import { Toy, type ToyClient, type ToyImpl, type Value, toyService } from "./toy.ts";

async function start(impl: ToyImpl, options: Parameters<typeof serve>[1] = {}) {
  const server = await serve([toyService(impl)], options);
  const channel = dialRpc(server.address);
  return {
    server,
    channel,
    toy: toyOf(channel),
    async [Symbol.asyncDispose]() {
      await channel[Symbol.asyncDispose]();
      await server[Symbol.asyncDispose]();
    },
  };
}

const toyOf = (channel: RpcChannel): ToyClient => channel.client(Toy) as unknown as ToyClient;

async function* numbers(...values: number[]): AsyncGenerator<Value> {
  for (const value of values) yield { value };
}

async function valuesOf(answers: AsyncIterable<Value>): Promise<number[]> {
  const values = [];
  for await (const { value } of answers) values.push(value);
  return values;
}

/** Far more than the windows of 1 MiB and the buffers around them. */
const COUNT = 10_000;
const KILOBYTE = new Uint8Array(1000);

describe("typed calls", () => {
  it("work in all four kinds", async () => {
    await using t = await start({
      unary: async ({ value }) => ({ value: value + 1 }),
      async gather(requests) {
        let sum = 0;
        for await (const { value } of requests) sum += value;
        return { value: sum };
      },
      async *scatter({ value }) {
        for (let index = 0; index < value; index++) yield { value: index };
      },
      async *talk(requests) {
        for await (const { value } of requests) yield { value: value * 2 };
      },
    });
    assert.equal((await t.toy.unary({ value: 1 })).value, 2);
    assert.equal((await t.toy.unary({})).value, 1); // An empty message has no bytes at all.
    assert.equal((await t.toy.gather(numbers(1, 2, 3))).value, 6);
    assert.deepEqual(await valuesOf(t.toy.scatter({ value: 3 })), [0, 1, 2]);
    assert.deepEqual(await valuesOf(t.toy.talk(numbers(1, 2))), [2, 4]);
  });

  it("answer each request before the next is sent, if both sides work that way", async () => {
    await using t = await start({
      async *talk(requests) {
        for await (const { value } of requests) yield { value };
      },
    });
    let answered = deferred<number>();
    async function* turns(): AsyncGenerator<Value> {
      for (let value = 0; value < 3; value++) {
        yield { value };
        assert.equal(await answered.promise, value);
        answered = deferred();
      }
    }
    for await (const { value } of t.toy.talk(turns())) answered.resolve(value);
  });

  it("carry a ServiceError with its code, before and in mid-stream", async () => {
    await using t = await start({
      unary: () => Promise.reject(new ServiceError("model_not_found", "No model x.", { param: "model" })),
      async *scatter() {
        yield { value: 1 };
        throw new ServiceError("engine_failed", "It broke.");
      },
    });
    await assert.rejects(t.toy.unary({}), { code: "model_not_found", message: "No model x.", param: "model" });
    const answers = t.toy.scatter({})[Symbol.asyncIterator]();
    assert.equal((await answers.next()).value?.value, 1);
    await assert.rejects(answers.next(), { code: "engine_failed" });
  });

  it("hide any other error, and log it with its stack", async () => {
    const { log, events } = logSink();
    await using t = await start({ unary: () => Promise.reject(new TypeError("secret")) }, { log });
    await assert.rejects(
      t.toy.unary({}),
      (error: ServiceError) => error.code === "internal" && !error.message.includes("secret"),
    );
    assert.match(JSON.stringify(events("call failed unexpectedly")), /toy\.Toy\/Unary.*typed\.test/s);
  });

  it("say that a method is not served", async () => {
    await using t = await start({});
    await assert.rejects(t.toy.unary({}), { code: "method_not_allowed" });
  });

  it("abort the context's signal when the client cancels, and run the generator's cleanup", async () => {
    const aborted = deferred<unknown>();
    const cleaned = deferred();
    await using t = await start({
      async *scatter(_request, { signal }) {
        signal.addEventListener("abort", () => aborted.resolve(signal.reason));
        try {
          for (let value = 0; ; value++) {
            yield { value };
            await setImmediate();
          }
        } finally {
          cleaned.resolve();
        }
      },
    });
    for await (const { value } of t.toy.scatter({})) if (value === 3) break;
    assert.equal(((await within(aborted.promise, "abort")) as ServiceError).code, "cancelled");
    await within(cleaned.promise, "cleanup");
  });

  it("throw `cancelled` from the caller's signal, also one that was aborted before", async () => {
    const reached = deferred();
    await using t = await start({
      unary: (_request, { signal }) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener("abort", () => reject(signal.reason as Error));
          reached.resolve();
        }),
    });
    const controller = new AbortController();
    const call = t.toy.unary({}, { signal: controller.signal });
    await reached.promise;
    controller.abort();
    await assert.rejects(call, { code: "cancelled" });
    await assert.rejects(t.toy.unary({}, { signal: controller.signal }), { code: "cancelled" });
  });

  it("end at the deadline on both sides", async () => {
    const reason = deferred<unknown>();
    let deadlineMs: number | undefined;
    await using t = await start({
      unary: (_request, context) =>
        new Promise((_resolve, reject) => {
          deadlineMs = context.deadlineMs;
          context.signal.addEventListener("abort", () => {
            reason.resolve(context.signal.reason);
            reject(context.signal.reason as Error);
          });
        }),
    });
    const startMs = Date.now();
    await assert.rejects(t.toy.unary({}, { timeoutMs: 100 }), { code: "deadline_exceeded" });
    assert.ok(deadlineMs !== undefined && Math.abs(deadlineMs - startMs - 100) < 50);
    await within(reason.promise, "abort at the server");
  });

  it("let a stream of requests throw when the caller is lost, and end when it is done", async () => {
    const outcomes: string[] = [];
    let seen = deferred();
    await using t = await start({
      async *talk(requests) {
        try {
          for await (const { value } of requests) yield { value };
          outcomes.push("done");
        } catch (error) {
          outcomes.push((error as ServiceError).code);
          throw error;
        } finally {
          seen.resolve();
        }
      },
    });
    await valuesOf(t.toy.talk(numbers(1)));
    await seen.promise;
    seen = deferred();
    const never = new Promise<never>(() => {});
    async function* endless(): AsyncGenerator<Value> {
      yield { value: 1 };
      await never;
    }
    for await (const _ of t.toy.talk(endless())) break;
    await within(seen.promise, "end at the server");
    assert.deepEqual(outcomes, ["done", "cancelled"]);
  });

  it("hold back a generator whose client does not read", async () => {
    let made = 0;
    await using t = await start({
      async *scatter() {
        for (; made < COUNT; made++) yield { value: made, pad: KILOBYTE };
      },
    });
    const answers = t.toy.scatter({})[Symbol.asyncIterator]();
    await answers.next();
    let before = -1;
    while (before !== made) {
      before = made;
      for (let turn = 0; turn < 50; turn++) await setImmediate();
    }
    assert.ok(made < COUNT / 2, `${made} messages were made for a client that does not read`);
    await answers.return?.();
  });

  it("hold back a client whose server does not read", async () => {
    const release = deferred();
    await using t = await start({
      async gather(requests) {
        await release.promise;
        let count = 0;
        for await (const _ of requests) count++;
        return { value: count };
      },
    });
    let made = 0;
    async function* many(): AsyncGenerator<Value> {
      for (; made < COUNT; made++) yield { value: made, pad: KILOBYTE };
    }
    const sum = t.toy.gather(many());
    let before = -1;
    while (before !== made) {
      before = made;
      for (let turn = 0; turn < 50; turn++) await setImmediate();
    }
    assert.ok(made < COUNT / 2, `${made} messages were made for a server that does not read`);
    release.resolve();
    assert.equal((await within(sum, "the sum", 15_000)).value, COUNT);
  });

  it("refuse bytes that are not a message, and name the message", async () => {
    await using t = await start({ unary: async () => ({ value: 1 }) });
    const thin = dialRpc(t.server.address);
    await assert.rejects(thin.unary("/toy.Toy/Unary", Buffer.from([0xff, 0xff])), {
      code: "invalid_request",
      message: /toy\.Number/,
    });
    await thin[Symbol.asyncDispose]();
  });

  it("fail as unavailable if no server listens, and work once one does", async () => {
    const address = `127.0.0.1:${await freePort()}`;
    await using channel = dialRpc(address);
    const toy = toyOf(channel);
    await assert.rejects(toy.unary({}), { code: "instance_unavailable" });
    await using _server = await serve([toyService({ unary: async () => ({ value: 7 }) })], { listen: address });
    assert.equal((await toy.unary({})).value, 7);
  });

  it("fail as lost when the connection breaks after the first message", async () => {
    await using rogue = await startRogue((stream) => {
      stream.respond({ ":status": 200, "content-type": "application/grpc" });
      stream.write(Buffer.alloc(5)); // An empty message.
    });
    await using channel = dialRpc(rogue.address);
    const answers = toyOf(channel).scatter({})[Symbol.asyncIterator]();
    await answers.next();
    for (const socket of rogue.sockets) socket.resetAndDestroy();
    await assert.rejects(answers.next(), { code: "instance_lost" });
  });
});
