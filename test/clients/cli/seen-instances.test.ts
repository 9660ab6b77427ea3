import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { takeMessages, watchSeenInstances, type SeenInstance } from "../../../clients/cli/up/seen-instances.ts";
import { deferred, within } from "../../support/waits.ts";

function framed(message: unknown, flags = 0): Buffer {
  const body = Buffer.from(JSON.stringify(message));
  const head = Buffer.alloc(5);
  head[0] = flags;
  head.writeUInt32BE(body.length, 1);
  return Buffer.concat([head, body]);
}

describe("messages of a Connect stream", () => {
  it("are read whole, whatever the pieces", () => {
    const all = Buffer.concat([framed({ instances: [{ eligible: true }] }), framed({}), framed({ error: {} }, 2)]);
    const seen: (readonly SeenInstance[])[] = [];
    let rest = Buffer.alloc(0);
    for (const byte of all)
      rest = Buffer.from(takeMessages(Buffer.concat([rest, Buffer.of(byte)]), (instances) => seen.push(instances)));
    assert.deepEqual(seen, [[{ eligible: true }], []]);
    assert.equal(rest.length, 0);
  });
});

describe("watching a router", () => {
  it("goes on when the router was not there yet, is somebody else, or went away", async () => {
    const answers: ((request: IncomingMessage, response: ServerResponse) => void)[] = [
      (_, response) => response.destroy(),
      (_, response) => response.writeHead(404).end("not Tandem"),
      (_, response) =>
        response
          .writeHead(200, { "content-type": "application/connect+json" })
          .end(framed({ instances: [{ info: { pid: 1 } }] })),
      (request, response) => {
        assert.equal(request.headers.authorization, "Bearer t0k3n");
        response
          .writeHead(200, { "content-type": "application/connect+json" })
          .write(framed({ instances: [{ info: { pid: 2 } }] }));
      },
    ];
    const server = createServer((request, response) => {
      request.resume();
      answers.shift()?.(request, response);
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as AddressInfo;
    const pids: (number | undefined)[] = [];
    const second = deferred();
    const stop = new AbortController();
    watchSeenInstances({
      url: `http://127.0.0.1:${port}`,
      token: "t0k3n",
      stop: stop.signal,
      onInstances(instances) {
        pids.push(instances[0]?.info?.pid);
        if (pids.length === 2) second.resolve();
      },
    });
    await within(second.promise, "the second list");
    assert.deepEqual(pids, [1, 2]);
    stop.abort();
    await within(once(server.close(), "close"), "the connection's end");
  });
});
