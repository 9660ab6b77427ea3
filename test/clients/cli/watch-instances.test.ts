import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { RouterService } from "#gen/tandem/router/v1/router_pb.js";
import { watchInstances } from "../../../clients/cli/up/watch-instances.ts";
import { deferred, within } from "../../support/waits.ts";

describe("watching the instances of a router", () => {
  it("continues if the router has not started, another server answers, or the router stops", async () => {
    const tokens: (string | null)[] = [];
    /** A router that reports one instance, and ends the watch there or holds it. */
    const reports = (pid: number, holds: boolean): RequestListener =>
      connectNodeAdapter({
        routes: (routes) =>
          routes.service(RouterService, {
            async *watchInstances(_request, { requestHeader, signal }) {
              tokens.push(requestHeader.get("authorization"));
              yield { instances: [{ info: { pid } }] };
              if (holds) await once(signal, "abort");
            },
          }),
      });
    const answers: RequestListener[] = [
      (_, response) => void response.destroy(),
      (_, response) => void response.writeHead(404).end("not Tandem"),
      reports(1, false),
      reports(2, true),
    ];
    const server = createServer((request, response) => answers.shift()?.(request, response));
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const pids: (number | undefined)[] = [];
    const second = deferred();
    const stop = new AbortController();
    const restUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const watching = watchInstances({ restUrl, token: "t0k3n" }, stop.signal, (instances) => {
      pids.push(instances[0]?.info?.pid);
      if (pids.length === 2) second.resolve();
    });
    await within(second.promise, "the second list");
    assert.deepEqual(
      [pids, tokens],
      [
        [1, 2],
        ["Bearer t0k3n", "Bearer t0k3n"],
      ],
    );
    stop.abort();
    await within(watching, "the end of the watch");
    server.closeAllConnections();
    await within(once(server.close(), "close"), "the end of the server");
  });
});
