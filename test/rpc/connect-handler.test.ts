import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { Code, ConnectError, type Transport, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { ErrorInfoSchema, RetryInfoSchema } from "#gen/google/rpc/error_details_pb.js";
import { RouterService } from "#gen/tandem/router/v1/router_pb.js";
import { ServiceError } from "../../services/common/errors.ts";
import { connectHandler } from "../../services/rpc/connect-handler.ts";
import type { CallContext, RpcService } from "../../services/rpc/service.ts";
import { logSink } from "../support/log-sink.ts";
import { deferred, within } from "../support/waits.ts";

const PATH = "/tandem.router.v1.RouterService";

function routerService(typed: RpcService["typed"], access: RpcService["access"] = "open"): RpcService {
  return { descriptor: RouterService, access, raw: {}, typed };
}

async function mount(service: RpcService, options: { token?: string } = {}) {
  const sink = logSink();
  const handler = connectHandler([service], { log: sink.log, ...options });
  const server = createServer((request, response) =>
    handler(request, response, () => response.writeHead(418).end("not ours")),
  );
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    events: sink.events,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

const post = (url: string, body: unknown, headers: Record<string, string> = {}): Promise<Response> =>
  fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });

const transports: Record<string, (baseUrl: string) => Transport> = {
  Connect: (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "1.1" }),
  "gRPC-Web": (baseUrl) => createGrpcWebTransport({ baseUrl, httpVersion: "1.1" }),
};

describe("services over HTTP/1.1", () => {
  it("answer curl's JSON with JSON", async () => {
    await using server = await mount(routerService({ listInstances: async () => ({ instances: [{ legs: 3 }] }) }));
    const response = await post(`${server.url}${PATH}/ListInstances`, {});
    assert.equal(response.status, 200);
    assert.deepEqual(await response.json(), { instances: [{ legs: 3 }] });
  });

  it("leave all other paths to the next handler", async () => {
    await using server = await mount(routerService({}));
    assert.equal((await post(`${server.url}/v1/completions`, {})).status, 418);
    assert.equal((await post(`${server.url}${PATH}X/ListInstances`, {})).status, 418);
  });

  it("give an error its code, its HTTP status and its details", async () => {
    const error = new ServiceError("not_found", "No request of this id.", { param: "request_id", retryAfterS: 1 });
    await using server = await mount(routerService({ getReceipt: () => Promise.reject(error) }));
    const response = await post(`${server.url}${PATH}/GetReceipt`, { requestId: "x" });
    assert.equal(response.status, 404);
    const body = (await response.json()) as {
      code: string;
      message: string;
      details: { type: string; debug: { reason: string } }[];
    };
    assert.equal(body.code, "not_found");
    assert.equal(body.message, "No request of this id.");
    assert.deepEqual(
      body.details.map(({ type }) => type),
      ["google.rpc.ErrorInfo", "google.rpc.RetryInfo"],
    );
    assert.equal(body.details[0]!.debug.reason, "not_found");
  });

  it("refuse a call without the token, as gRPC does", async () => {
    const service = routerService({ listInstances: async () => ({}), watchInstances: async function* () {} }, "token");
    await using server = await mount(service, { token: "join" });
    const refused = await post(`${server.url}${PATH}/ListInstances`, {});
    assert.equal(refused.status, 401);
    assert.match(((await refused.json()) as { message: string }).message, /authorization: Bearer <token>/);
    const taken = await post(`${server.url}${PATH}/ListInstances`, {}, { authorization: "Bearer join" });
    assert.equal(taken.status, 200);
    const client = createClient(RouterService, transports["Connect"]!(server.url));
    await assert.rejects(
      async () => {
        for await (const _ of client.watchInstances({}));
      },
      (error: ConnectError) => error.code === Code.Unauthenticated,
    );
  });

  it("hide an error that is thrown by mistake, and log it", async () => {
    await using server = await mount(routerService({ listInstances: () => Promise.reject(new TypeError("secret")) }));
    const response = await post(`${server.url}${PATH}/ListInstances`, {});
    assert.equal(response.status, 500);
    assert.doesNotMatch(await response.text(), /secret/);
    assert.match(JSON.stringify(server.events("call failed unexpectedly")), /secret/);
  });

  for (const [name, transport] of Object.entries(transports)) {
    it(`stream over ${name}, errors in mid-stream included`, async () => {
      await using server = await mount(
        routerService({
          async *watchInstances() {
            yield { instances: [{ legs: 1 }] };
            yield { instances: [{ legs: 2 }] };
            throw new ServiceError("queue_full", "Too many watchers.", { retryAfterS: 2 });
          },
        }),
      );
      const seen: unknown[] = [];
      const error = await (async () => {
        for await (const { instances } of createClient(RouterService, transport(server.url)).watchInstances({}))
          seen.push(instances[0]?.legs);
      })().catch((thrown: unknown) => ConnectError.from(thrown));
      assert.deepEqual(seen, [1, 2]);
      assert.equal(error?.code, Code.ResourceExhausted);
      assert.equal(error?.findDetails(ErrorInfoSchema)[0]?.reason, "queue_full");
      assert.equal(error?.findDetails(RetryInfoSchema)[0]?.retryDelay?.seconds, 2n);
    });
  }

  it("abort the context's signal when the client leaves", async () => {
    const aborted = deferred();
    await using server = await mount(
      routerService({
        async *watchInstances(_request: unknown, context: CallContext) {
          context.signal.addEventListener("abort", () => aborted.resolve());
          assert.equal(context.header("x-test"), "yes");
          assert.ok(context.deadlineMs! > Date.now());
          yield { instances: [] };
          await aborted.promise;
        },
      }),
    );
    const client = createClient(RouterService, transports["Connect"]!(server.url));
    const leaving = new AbortController();
    const options = { headers: { "x-test": "yes" }, timeoutMs: 60_000, signal: leaving.signal };
    await assert.rejects(async () => {
      for await (const _ of client.watchInstances({}, options)) leaving.abort();
    });
    await within(aborted.promise, "abort");
  });
});
