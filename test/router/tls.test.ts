// A whole deployment over TLS: REST, the router's gRPC, the instances. Who is out because of a certificate is told so.
import assert from "node:assert/strict";
import { request } from "node:https";
import { text } from "node:stream/consumers";
import { createAuthority, validFor } from "../../clients/cli/certs/authority.ts";
import { RouterService, Standing } from "#gen/tandem/router/v1/router_pb.js";
import { loadConfig } from "../../services/common/config.ts";
import { routerConfig } from "../../services/router/config.ts";
import { startRouter, type Router } from "../../services/router/main.ts";
import { dialRpc } from "../../services/rpc/channel.ts";
import { openTls } from "../../services/rpc/tls.ts";
import type { TlsSettings } from "../../services/rpc/tls-settings.ts";
import { simDecode, simPrefill } from "../instance/legs.ts";
import { EXPIRED, certificateFolder, type CertificateFolder } from "../support/certificates.ts";
import { logSink, silentLog } from "../support/log-sink.ts";
import { eventually } from "../support/waits.ts";

const flagsOf = ({ cert, key, ca }: TlsSettings) => ({ "tls.cert": cert, "tls.key": key, "tls.ca": ca });

function start(tls: TlsSettings, log = silentLog): Promise<Router> {
  const flags = { "rest.listen": "127.0.0.1:0", "grpc.listen": "127.0.0.1:0", ...flagsOf(tls) };
  const argv = Object.entries(flags).map(([key, value]) => `--${key}=${value}`);
  return startRouter(loadConfig(routerConfig, { argv, env: {} }), { log });
}

function ask(folder: CertificateFolder, router: Router, path: string, body?: object) {
  return new Promise<{ status: number; body: string }>((resolve, reject) => {
    const options = { ca: folder.authority.cert, method: body === undefined ? "GET" : "POST" };
    const sent = request(`${router.restUrl}${path}`, options, (response) => {
      text(response).then((got) => resolve({ status: response.statusCode!, body: got }), reject);
    });
    sent
      .on("error", reject)
      .setHeader("content-type", "application/json")
      .end(body && JSON.stringify(body));
  });
}

describe("a deployment over TLS", () => {
  let folder: CertificateFolder;
  before(() => (folder = certificateFolder()));
  after(() => folder[Symbol.dispose]());

  it("serves without a token, and names what is wrong with a certificate", async () => {
    const sink = logSink();
    const own = folder.issue("router");
    await using router = await start(own, sink.log);
    const registry = { "registry.address": router.grpcAddress };
    await using _prefill = await simPrefill("p2p-zmq", { ...registry, ...flagsOf(folder.issue("prefill")) });
    await using _decode = await simDecode("p2p-zmq", { ...registry, ...flagsOf(folder.issue("decode")) });
    await eventually("it is ready", async () => (await ask(folder, router, "/readyz")).status === 200);
    const answer = await ask(folder, router, "/v1/completions", { prompt: "hello", max_tokens: 3 });
    assert.equal(answer.status, 200, answer.body);

    using tls = openTls(own, { log: silentLog })!;
    await using channel = dialRpc(router.grpcAddress, { tls });
    const { instances } = await channel.client(RouterService).listInstances({});
    assert.deepEqual(
      instances.map(({ standing }) => standing),
      [Standing.SERVING, Standing.SERVING],
    );

    // Strangers can't register. Each is told why, and the router's operator too.
    const foreign = createAuthority("foreign", validFor(1));
    for (const [wrong, because] of [
      [folder.issue("old", { validity: EXPIRED }), /^The caller's certificate has expired/],
      [folder.write("alien", folder.authority, foreign.cert), /^The peer's certificate is not from an authority/],
    ] as const) {
      const instance = logSink();
      using identity = openTls(wrong, { log: silentLog })!;
      await using stranger = dialRpc(router.grpcAddress, { tls: identity, log: instance.log });
      await assert.rejects(stranger.client(RouterService).listInstances({}), (error: Error) => {
        const said = error.cause instanceof Error ? error.cause.message : error.message;
        assert.match(said, because);
        return true;
      });
    }
    assert.match(String(sink.events("a caller was refused")[0]!["because"]), /^The caller's certificate has expired/);
  });
});
