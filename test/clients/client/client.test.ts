import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { grpcClient, tandemClient, TandemError, type TandemClient } from "../../../clients/client/index.ts";
import { loadConfig } from "../../../services/common/config.ts";
import { routerConfig } from "../../../services/router/config.ts";
import { startRouter } from "../../../services/router/main.ts";
import { simDecode, simPrefill, type SimInstance } from "../../instance/legs.ts";
import { silentLog } from "../../support/log-sink.ts";
import { eventually, freePort, within } from "../../support/waits.ts";

const SECRETS = { apiKey: "k3y", token: "t0k3n" };
const MESSAGES = [{ role: "user", content: "What is Tandem?" }] as const;

/** The error that `call` throws. */
async function thrownBy(call: Promise<unknown>): Promise<TandemError> {
  const error: unknown = await within(
    call.then(
      () => assert.fail("it should have thrown"),
      (thrown: unknown) => thrown,
    ),
    "the error",
  );
  assert.ok(error instanceof TandemError, String(error));
  return error;
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

describe("the client of a router", () => {
  let router: Awaited<ReturnType<typeof startRouter>>;
  let instances: SimInstance[] = [];
  let tandem: TandemClient;
  before(async () => {
    const argv = ["--rest.listen", "127.0.0.1:0", "--grpc.listen", "127.0.0.1:0", "--api-key", SECRETS.apiKey];
    const config = loadConfig(routerConfig, { argv: [...argv, "--token", SECRETS.token], env: {} });
    router = await startRouter(config, { log: silentLog });
    tandem = tandemClient({ url: router.restUrl, ...SECRETS });
    assert.deepEqual(await tandem.ready(), {
      ready: false,
      reason: "No instance has registered: start a prefill and a decode instance.",
    });
    const registry = { "registry.address": router.grpcAddress, token: SECRETS.token };
    instances = [await simPrefill("p2p-zmq", registry), await simDecode("p2p-zmq", registry)];
    await eventually("the router serves", async () => (await tandem.ready()).ready);
  });
  after(async () => {
    for (const instance of instances) await instance[Symbol.asyncDispose]();
    await router[Symbol.asyncDispose]();
  });

  it("lists the models and answers, whole and streamed alike", async () => {
    const [model] = await tandem.models();
    const request = { model: model!.id, max_tokens: 5, temperature: 0 };
    const chat = await tandem.chat({ ...request, messages: MESSAGES });
    assert.equal(chat.usage.completion_tokens, 5);
    const stream = await tandem.streamChat({ ...request, messages: MESSAGES, stream_options: { include_usage: true } });
    const chunks = await collect(stream);
    const text = chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join("");
    assert.equal(text, chat.choices[0]!.message.content);
    assert.equal(chunks.at(-1)!.usage?.completion_tokens, 5);
    const { receipt } = await tandem.router.getReceipt({ requestId: stream.requestId });
    assert.equal(receipt?.model, model!.id);

    const whole = await tandem.complete({ ...request, prompt: "Hello" });
    const pieces = await collect(await tandem.streamCompletion({ ...request, prompt: "Hello" }));
    assert.equal(pieces.map(({ choices }) => choices[0]?.text ?? "").join(""), whole.choices[0]!.text);
  });

  it("watches the instances until its signal aborts, and throws the reason then", async () => {
    const stop = new AbortController();
    const seen: number[] = [];
    const watching = (async () => {
      for await (const message of tandem.router.watchInstances({}, { signal: stop.signal })) {
        seen.push(message.instances.length);
        stop.abort(new Error("enough"));
      }
    })();
    await assert.rejects(within(watching, "the end of the watch"), /^Error: enough$/);
    assert.deepEqual(seen, [2]);
  });

  it("ends the request when its signal aborts, or when the loop over the stream is left", async () => {
    const stop = new AbortController();
    const body = { model: "tandem-sim", prompt: "Hello", max_tokens: 4_000, ignore_eos: true };
    const stopped = await tandem.streamCompletion(body, { signal: stop.signal });
    const reading = (async () => {
      for await (const _ of stopped) stop.abort(new Error("enough"));
    })();
    await assert.rejects(within(reading, "the end of the stream"), /^Error: enough$/);
    const left = await tandem.streamCompletion(body);
    for await (const _ of left) break;
    for (const { requestId } of [stopped, left]) {
      await eventually("the router saw the client leave", async () => {
        const { receipt } = await tandem.router.getReceipt({ requestId });
        return receipt?.status === 499 || receipt?.outcome === 2;
      });
    }
  });

  it("says which of its two secrets is refused", async () => {
    const stranger = tandemClient({ url: router.restUrl });
    const wrong = tandemClient({ url: router.restUrl, apiKey: "no", token: "no" });
    for (const client of [stranger, wrong]) {
      assert.equal((await thrownBy(client.models())).kind, "unauthenticated");
      const { kind, code } = await thrownBy(client.router.listInstances({}));
      assert.deepEqual([kind, code], ["unauthenticated", "unauthenticated"]);
      assert.equal((await thrownBy(collect(client.router.watchInstances({})))).kind, "unauthenticated");
    }
  });

  it("passes the router's errors on, with their status or code", async () => {
    const refused = await thrownBy(tandem.chat({ model: "no-such", messages: MESSAGES }));
    assert.deepEqual([refused.kind, refused.status], ["failed", 404]);
    assert.match(refused.message, /`no-such` does not exist/);
    assert.equal((await thrownBy(tandem.streamChat({ model: "no-such", messages: MESSAGES }))).status, 404);
    const unknown = await thrownBy(tandem.router.getReceipt({ requestId: "no-such" }));
    assert.deepEqual([unknown.kind, unknown.code], ["failed", "not_found"]);
  });

  it("calls the services at a gRPC address", async () => {
    const grpc = grpcClient(router.grpcAddress, SECRETS.token);
    assert.equal((await grpc.router.listInstances({})).instances.length, 2);
    const { address } = instances[0]!.instance;
    assert.equal((await grpcClient(address, SECRETS.token).instance.getInfo({})).info?.model, "tandem-sim");
    assert.equal((await thrownBy(grpcClient(address, "wrong").instance.getInfo({}))).kind, "unauthenticated");
    const nobody = `127.0.0.1:${await freePort()}`;
    assert.equal((await thrownBy(grpcClient(nobody).instance.getInfo({}))).kind, "unreachable");
  });
});

describe("a client of something else", () => {
  /** A server that answers as `listener` does. */
  async function serverOf(listener: RequestListener): Promise<AsyncDisposable & { readonly url: string }> {
    const server = createServer(listener).listen(0, "127.0.0.1");
    await once(server, "listening");
    return {
      url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      async [Symbol.asyncDispose]() {
        server.closeAllConnections();
        await new Promise((done) => server.close(done));
      },
    };
  }
  const kindsOf = async (url: string): Promise<string[]> => {
    const tandem = tandemClient({ url });
    const calls = [tandem.models(), tandem.ready(), tandem.router.listInstances({})];
    return Promise.all(calls.map(async (call) => (await thrownBy(call)).kind));
  };

  it("says that nothing listens there", async () => {
    const url = `http://127.0.0.1:${await freePort()}`;
    assert.deepEqual(await kindsOf(url), ["unreachable", "unreachable", "unreachable"]);
    assert.equal((await thrownBy(tandemClient({ url }).ready())).message, `Nothing listens at ${url}.`);
  });

  it("says that it is not a router", async () => {
    await using html = await serverOf((_, response) => void response.writeHead(404).end("<html>Not here</html>"));
    assert.deepEqual(await kindsOf(html.url), ["not_tandem", "not_tandem", "not_tandem"]);
  });

  it("says that the address is the gRPC one", async () => {
    const argv = ["--rest.listen", "127.0.0.1:0", "--grpc.listen", "127.0.0.1:0"];
    await using router = await startRouter(loadConfig(routerConfig, { argv, env: {} }), { log: silentLog });
    const url = `http://${router.grpcAddress}`;
    assert.deepEqual(await kindsOf(url), ["not_tandem", "not_tandem", "not_tandem"]);
    assert.match((await thrownBy(tandemClient({ url }).models())).message, /speaks gRPC/);
  });

  it("says that a connection or a stream broke", async () => {
    await using cut = await serverOf((request) => request.socket.destroy());
    assert.deepEqual(await kindsOf(cut.url), ["broken", "broken", "broken"]);
    await using half = await serverOf((_, response) => {
      response.writeHead(200, { "content-type": "text/event-stream", "x-request-id": "r1" });
      response.end('data: {"choices":[]}\n\n');
    });
    const stream = await tandemClient({ url: half.url }).streamChat({ model: "m", messages: MESSAGES });
    const error = await thrownBy(collect(stream));
    assert.deepEqual([error.kind, error.requestId], ["broken", "r1"]);
  });

  it("throws the error event of a stream, and says when to retry", async () => {
    await using failing = await serverOf((request, response) => {
      if (request.url === "/v1/completions") {
        const body = JSON.stringify({ error: { message: "Too many requests." } });
        return void response.writeHead(429, { "retry-after": "7", "x-request-id": "r2" }).end(body);
      }
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.end('data: {"error":{"message":"The engine died."}}\n\ndata: [DONE]\n\n');
    });
    const tandem = tandemClient({ url: failing.url });
    const stream = await tandem.streamChat({ model: "m", messages: MESSAGES });
    assert.equal((await thrownBy(collect(stream))).message, "The engine died.");
    const refused = await thrownBy(tandem.complete({ model: "m", prompt: "x" }));
    assert.deepEqual([refused.status, refused.retryAfterS, refused.requestId], [429, 7, "r2"]);
  });
});
