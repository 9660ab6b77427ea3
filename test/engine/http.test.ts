import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import { createServer as createTcpServer, type AddressInfo, type Socket } from "node:net";
import { EngineHttp, neverReached } from "../../services/engine/http.ts";
import { makeSocketFolder, removeSocketFolder } from "../../services/engine/socket-folder.ts";
import { deferred, within } from "../support/waits.ts";

async function serving(
  handler: Parameters<typeof createServer>[1],
): Promise<{ http: EngineHttp; server: Server } & AsyncDisposable> {
  const server = createServer(handler!);
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  const http = new EngineHttp({ url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, apiKey: "k" });
  return {
    http,
    server,
    async [Symbol.asyncDispose]() {
      http.close(new Error("over"));
      server.closeAllConnections();
      await new Promise((done) => server.close(done));
    },
  };
}

/** Answers the first request of a connection; the second one meets a reset. */
async function resetsSecond(
  onRequest: (text: string) => void,
): Promise<{ url: string; sockets: () => number } & AsyncDisposable> {
  let count = 0;
  const sockets = new Set<Socket>();
  const server = createTcpServer((socket) => {
    count++;
    sockets.add(socket);
    let seen = 0;
    socket.on("error", () => {});
    socket.on("data", (bytes) => {
      if (++seen > 1) return void socket.resetAndDestroy();
      onRequest(bytes.toString());
      socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    });
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    sockets: () => count,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((done) => server.close(done));
    },
  };
}

describe("HTTP to an engine", () => {
  it("reaches it at its socket, also when more connections come than its queue takes", async () => {
    const { folder, socketPath } = makeSocketFolder();
    // All of them connect before the server accepts one: this process has one thread.
    const server = createServer((_, res) => res.end("here")).listen({ path: socketPath, backlog: 1 });
    await once(server, "listening");
    const http = new EngineHttp({ url: `unix:${socketPath}` });
    const asked = Array.from({ length: 20 }, () => http.get("/health", 10_000));
    for (const { status, body } of await Promise.all(asked)) assert.deepEqual([status, String(body)], [200, "here"]);
    http.close(new Error("over"));
    server.close();
    removeSocketFolder(folder);
    await assert.rejects(new EngineHttp({ url: `unix:${socketPath}` }).get("/", 1_000), neverReached);
  });

  it("sends key, length and body, and keeps the connection", async () => {
    const ports = new Set<number>();
    await using it = await serving((req, res) => {
      ports.add(req.socket.remotePort!);
      assert.equal(req.headers.authorization, "Bearer k");
      assert.deepEqual([req.headers["content-type"], req.headers["content-length"]], ["application/json", "2"]);
      req.pipe(res);
    });
    for (let i = 0; i < 3; i++) {
      const answer = await it.http.fetch({ method: "POST", path: "/", body: Buffer.from("{}") });
      assert.deepEqual([answer.status, answer.body.toString()], [200, "{}"]);
    }
    assert.equal(ports.size, 1);
  });

  it("sends a repeatable request again when a kept connection was closed under it, and no other", async () => {
    await using server = await resetsSecond(() => {});
    const http = new EngineHttp({ url: server.url });
    await http.fetch({ method: "GET", path: "/" });
    assert.equal((await http.fetch({ method: "GET", path: "/", repeatable: true })).status, 200);
    assert.equal(server.sockets(), 2);
    await assert.rejects(http.fetch({ method: "POST", path: "/", body: Buffer.from("x") }), { code: "ECONNRESET" });
    http.close(new Error("over"));
  });

  it("tells an engine that was never reached from one that broke off its answer", async () => {
    const http = new EngineHttp({ url: "http://127.0.0.1:1" });
    await assert.rejects(http.fetch({ method: "GET", path: "/" }), neverReached);
    await using it = await serving((_req, res) => {
      res.writeHead(200, { "content-length": "100" });
      res.write("half", () => res.destroy());
    });
    await assert.rejects(it.http.fetch({ method: "GET", path: "/" }), (error) => !neverReached(error));
  });

  it("bounds what it takes and how long it waits", async () => {
    await using it = await serving((req, res) => void (req.url === "/big" && res.end("x".repeat(10_000))));
    await assert.rejects(it.http.fetch({ method: "GET", path: "/big" }, { limitBytes: 100 }), RangeError);
    await assert.rejects(it.http.fetch({ method: "GET", path: "/slow" }, { timeoutMs: 30 }), /within 30 ms/);
  });

  it("closes the connection on abort, and calls no handler after it", async () => {
    const gone = deferred();
    await using it = await serving((_req, res) => {
      res.write("first");
      res.on("close", () => gone.resolve());
    });
    const first = deferred();
    let ends = 0;
    const call = it.http.open(
      { method: "POST", path: "/", body: Buffer.from("{}") },
      { onHead() {}, onData: () => first.resolve(), onEnd: () => ends++ },
    );
    await first.promise;
    call.abort();
    await within(gone.promise, "the engine's side of the abort");
    assert.equal(ends, 0);
  });

  it("ends every call with one error when it is closed, and later calls too", async () => {
    await using it = await serving((_req, res) => void res.write("first"));
    const open = (): { started: Promise<void>; ended: Promise<Error | undefined> } => {
      const [started, ended] = [deferred(), deferred<Error | undefined>()];
      it.http.open(
        { method: "GET", path: "/" },
        { onHead() {}, onData: () => started.resolve(), onEnd: ended.resolve },
      );
      return { started: started.promise, ended: ended.promise };
    };
    const running = [open(), open()];
    await Promise.all(running.map(({ started }) => started));
    const unanswered = open();
    const why = new Error("the engine died");
    it.http.close(why);
    for (const { ended } of [...running, unanswered]) assert.equal(await within(ended, "the end of a call"), why);
    await assert.rejects(it.http.fetch({ method: "GET", path: "/" }), why);
  });

  it("stops reading while paused", async () => {
    let sent = 0;
    await using it = await serving((_req, res) => {
      const more = (): void => {
        while (!res.destroyed && sent < 50_000_000 && res.write(Buffer.alloc(65_536))) sent += 65_536;
      };
      res.on("drain", more);
      more();
    });
    let got = 0;
    const head = deferred();
    const call = it.http.open(
      { method: "GET", path: "/" },
      { onHead: () => head.resolve(), onData: (chunk) => (got += chunk.length), onEnd() {} },
    );
    call.pause();
    await head.promise;
    for (let i = 0; i < 20; i++) await new Promise(setImmediate);
    assert.ok(got < 1_000_000, `${got} bytes while paused`);
    call.resume();
    await within(
      (async () => {
        while (got < 10_000_000) await new Promise(setImmediate);
      })(),
      "bytes after resume",
    );
    call.abort();
  });
});
