import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { RouterService } from "#gen/tandem/router/v1/router_pb.js";
import { watchInstances } from "../../../clients/cli/up/watch-instances.ts";
import { serveRpc } from "../../../services/rpc/server.ts";
import { type CallContext, defineService } from "../../../services/rpc/service.ts";
import { silentLog } from "../../support/log-sink.ts";
import { deferred, freePort, within } from "../../support/waits.ts";

describe("watching the instances of a router", () => {
  it("continues if the router has not started, another server answers, or the router stops", async () => {
    const pids: (number | undefined)[] = [];
    const second = deferred();
    const stop = new AbortController();
    const port = await freePort();
    const grpcAddress = `127.0.0.1:${port}`;
    const watching = watchInstances({ grpcAddress, token: "t0k3n" }, stop.signal, (instances) => {
      pids.push(instances[0]?.info?.pid);
      if (pids.length === 2) second.resolve();
    });
    const other = createServer((_, response) => void response.writeHead(404).end("not Tandem"));
    const met = once(other, "connection");
    other.listen(port, "127.0.0.1");
    await within(met, "the watch at another server");
    other.closeAllConnections();
    await within(once(other.close(), "close"), "the end of the other server");
    let watches = 0;
    const watch = {
      /** Ends the first watch, and holds the second. */
      async *watchInstances(_request: unknown, { closing }: CallContext) {
        yield { instances: [{ info: { pid: ++watches } }] };
        if (watches === 2) await once(closing, "abort");
      },
    };
    const services = [defineService(RouterService, watch as never)];
    const router = await serveRpc({ listen: grpcAddress, services, token: "t0k3n", log: silentLog, graceMs: 0 });
    await within(second.promise, "the second list");
    assert.deepEqual(pids, [1, 2]);
    stop.abort();
    await within(watching, "the end of the watch");
    await router[Symbol.asyncDispose]();
  });
});
