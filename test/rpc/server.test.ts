import assert from "node:assert/strict";
import { createServer } from "node:net";
import { once } from "node:events";
import type { AddressInfo } from "node:net";
import { Health, HealthCheckResponse_ServingStatus as Status } from "#gen/grpc/health/v1/health_pb.js";
import { ServiceError } from "../../services/common/errors.ts";
import type { RawCall } from "../../services/rpc/service.ts";
import { logSink } from "../support/log-sink.ts";
import { deferred, within } from "../support/waits.ts";
import { callWith, DECODE, dial, eachEndedOnce, rawService, record, serve, serveRaw, startChild } from "./fixture.ts";
import { Toy, type ToyClient, toyService } from "./toy.ts";

const HELLO = Buffer.from("hello");

describe("a server", () => {
  it("names the port that it took", async () => {
    await using server = await serve([]);
    assert.match(server.address, /^127\.0\.0\.1:[1-9]\d+$/);
  });

  it("says which address is taken, and which flag changes it", async () => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const listen = `127.0.0.1:${(other.address() as AddressInfo).port}`;
    await assert.rejects(
      serve([], { listen }),
      (error: Error) => error.message.includes(listen) && error.message.includes("--grpc.listen"),
    );
    other.close();
  });

  it("refuses to be reachable from outside without a token", async () => {
    await assert.rejects(serve([], { listen: "0.0.0.0:0" }), /TANDEM_TOKEN/);
    await assert.rejects(serve([], { listen: "[::]:0" }), /TANDEM_TOKEN/);
    await using _server = await serve([], { listen: "0.0.0.0:0", token: "t" });
  });

  it("refuses a listen address that is not one, and a service given twice", async () => {
    await assert.rejects(serve([], { listen: "3001" }), /is not an address/);
    await assert.rejects(serve([toyService({}), toyService({})]), /served twice/);
  });

  it("tells each caller apart by its headers", async () => {
    const seen = deferred<RawCall>();
    await using server = await serveRaw((call) => {
      seen.resolve(call);
      call.end();
    });
    await using channel = dial(server.address);
    await record(channel, DECODE, { timeoutMs: 5000 }).ended;
    const call = await seen.promise;
    assert.equal(call.header("user-agent"), "tandem");
    assert.equal(call.header("x-absent"), undefined);
    assert.ok(Math.abs(call.deadlineMs! - Date.now() - 5000) < 1000);
  });
});

describe("a raw call at the server", () => {
  afterEach(eachEndedOnce);

  it("ends once: later writes and ends are ignored", async () => {
    let cancels = 0;
    await using server = await serveRaw((call) => {
      call.onCancel = () => cancels++;
      call.end();
      call.end();
      call.fail(new ServiceError("internal", "too late"));
      assert.equal(call.write(HELLO), true);
    });
    await using channel = dial(server.address);
    const { messages, ended } = record(channel);
    assert.equal(await ended, undefined);
    assert.equal(messages.length, 0);
    await channel[Symbol.asyncDispose]();
    assert.equal(cancels, 0);
  });

  it("learns of a cancel once, and may not answer after it", async () => {
    const cancelled = deferred<RawCall>();
    let cancels = 0;
    await using server = await serveRaw((call) => {
      call.onCancel = () => {
        cancels++;
        cancelled.resolve(call);
      };
      call.write(HELLO);
    });
    await using channel = dial(server.address);
    const { call, received, ended } = record(channel);
    await received(1);
    call.cancel();
    assert.equal((await ended)?.code, "cancelled");
    const serverCall = await within(cancelled.promise, "cancel");
    assert.equal(serverCall.write(HELLO), true);
    serverCall.fail(new ServiceError("internal", "too late"));
    serverCall.end();
    await channel[Symbol.asyncDispose]();
    assert.equal(cancels, 1);
  });

  it("learns that its connection is gone", async () => {
    const opened = deferred();
    const cancelled = deferred();
    await using server = await serveRaw((call) => {
      call.onMessage = () => opened.resolve();
      call.onCancel = cancelled.resolve;
    });
    await using channel = dial(server.address);
    const { call, ended } = record(channel);
    call.write(HELLO);
    await opened.promise;
    await channel[Symbol.asyncDispose]();
    await within(cancelled.promise, "cancel");
    await ended;
  });

  it("fails alone when its handler throws, whenever that is", async () => {
    const { log, events } = logSink();
    await using server = await serveRaw(
      (call) => {
        call.onMessage = (message) => {
          if (message.equals(HELLO)) throw new TypeError("a bug");
          call.end();
        };
        call.onHalfClose = () => {
          throw new ServiceError("failed_precondition", "Too early.");
        };
      },
      { log },
    );
    await using channel = dial(server.address);
    const bug = record(channel);
    bug.call.write(HELLO);
    assert.equal((await bug.ended)?.code, "internal");
    const early = record(channel);
    early.call.halfClose();
    assert.equal((await early.ended)?.code, "failed_precondition");
    const well = record(channel);
    well.call.write(Buffer.alloc(0));
    assert.equal(await well.ended, undefined);
    assert.equal(events("call failed unexpectedly").length, 1);
  });
});

describe("access", () => {
  const ok = { unary: async () => ({ value: 1 }) };
  const call = (address: string, bearer?: string): Promise<void> =>
    callWith(address, "/toy.Toy/Unary", bearer === undefined ? {} : { authorization: `Bearer ${bearer}` });

  it("to services of the deployment takes the join token", async () => {
    await using server = await serve([toyService(ok, "token")], { token: "join", apiKey: "key" });
    await assert.rejects(call(server.address), {
      code: "unauthenticated",
      message: /`authorization: Bearer <token>`.*TANDEM_TOKEN/,
    });
    await assert.rejects(call(server.address, "key"), { code: "unauthenticated", message: /wrong/ });
    await call(server.address, "join");
  });

  it("to services of clients takes the API key", async () => {
    await using server = await serve([toyService(ok, "key")], { token: "join", apiKey: "key" });
    await assert.rejects(call(server.address, "join"), { code: "unauthenticated", message: /API key/ });
    await call(server.address, "key");
  });

  it("is open if no such secret is configured, and for open services", async () => {
    await using open = await serve([toyService(ok, "open")], { token: "join" });
    await call(open.address);
    await using unset = await serve([toyService(ok, "token")], { token: "" });
    await call(unset.address);
  });

  it("is checked for raw methods before anything is read", async () => {
    let calls = 0;
    await using server = await serve([rawService(() => calls++, "token")], { token: "join" });
    await using channel = dial(server.address);
    assert.equal((await record(channel).ended)?.code, "unauthenticated");
    assert.equal(calls, 0);
    await eachEndedOnce();
  });
});

describe("health", () => {
  it("is not serving until the server says so, for every service on it", async () => {
    await using server = await serve([toyService({})], { token: "join" });
    await using channel = dial(server.address);
    const health = channel.client(Health);
    for (const service of ["", "toy.Toy"]) assert.equal((await health.check({ service })).status, Status.NOT_SERVING);
    server.setServing(true);
    for (const service of ["", "toy.Toy"]) assert.equal((await health.check({ service })).status, Status.SERVING);
    await assert.rejects(health.check({ service: "no.Such" }), { code: "not_found" });
  });

  it("can be watched, until the server shuts down", async () => {
    await using server = await serve([toyService({})]);
    await using channel = dial(server.address);
    const seen: Status[] = [];
    let next = deferred();
    const watch = (async () => {
      for await (const { status } of channel.client(Health).watch({ service: "toy.Toy" })) {
        seen.push(status);
        next.resolve();
      }
    })();
    const ended = assert.rejects(watch, { code: "instance_unavailable" });
    await next.promise;
    next = deferred();
    server.setServing(true);
    await next.promise;
    await server[Symbol.asyncDispose]();
    await within(ended, "end of the watch");
    assert.deepEqual(seen, [Status.NOT_SERVING, Status.SERVING, Status.NOT_SERVING]);
  });

  it("of an unknown service can be watched too", async () => {
    await using server = await serve([]);
    await using channel = dial(server.address);
    for await (const { status } of channel.client(Health).watch({ service: "no.Such" })) {
      assert.equal(status, Status.SERVICE_UNKNOWN);
      break;
    }
  });
});

describe("a caller that falls silent", () => {
  it("has its calls cancelled", async () => {
    const cancelled = deferred();
    await using server = await serveRaw(
      (call) => {
        call.onCancel = cancelled.resolve;
        call.write(HELLO);
      },
      { keepaliveMs: 200 },
    );
    await using child = await startChild("caller", server.address);
    child.signal("SIGSTOP");
    await within(cancelled.promise, "cancel", 2000);
  });
});

describe("a server that shuts down", () => {
  afterEach(eachEndedOnce);

  it("lets running calls end, takes no new ones, and may be disposed of twice", async () => {
    const opened = deferred<RawCall>();
    await using server = await serveRaw((call) => opened.resolve(call), { graceMs: 10_000, keepaliveMs: 30 });
    await using channel = dial(server.address);
    const { ended } = record(channel);
    const serverCall = await opened.promise;
    const closed = Promise.all([server[Symbol.asyncDispose](), server[Symbol.asyncDispose]()]);
    while (channel.state.kind === "up") await new Promise(setImmediate); // GOAWAY has come.
    assert.equal((await record(channel).ended)?.code, "instance_unavailable");
    await new Promise((resolve) => setTimeout(resolve, 100)); // Several keepalive intervals.
    serverCall.write(HELLO);
    serverCall.end();
    assert.equal(await ended, undefined);
    await within(closed, "the shutdown");
  });

  it("breaks calls that are still there after its grace", async () => {
    const opened = deferred();
    const cancelled = deferred();
    await using server = await serveRaw(
      (call) => {
        opened.resolve();
        call.onCancel = cancelled.resolve;
      },
      { graceMs: 20 },
    );
    await using channel = dial(server.address);
    const { ended } = record(channel);
    await opened.promise;
    await within(server[Symbol.asyncDispose](), "the shutdown");
    assert.equal((await ended)?.code, "instance_lost");
    await within(cancelled.promise, "cancel at the server");
  });

  it("tells typed calls that it is closing", async () => {
    const closing = deferred();
    const reached = deferred();
    await using server = await serve(
      [
        toyService({
          async *scatter(_request, context) {
            context.closing.addEventListener("abort", () => closing.resolve());
            reached.resolve();
            await closing.promise;
            yield { value: 1 };
          },
        }),
      ],
      { graceMs: 10_000 },
    );
    await using channel = dial(server.address);
    const values = (async () => {
      const all: number[] = [];
      for await (const { value } of (channel.client(Toy) as unknown as ToyClient).scatter({})) all.push(value);
      return all;
    })();
    await reached.promise;
    await within(server[Symbol.asyncDispose](), "the shutdown");
    assert.deepEqual(await values, [1]);
  });
});
