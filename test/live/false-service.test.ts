// A false service in a real Consul, with a join token and with TLS; and certificates that are replaced under load.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, createSecureServer } from "node:http2";
import { Agent, request } from "node:https";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { connect } from "node:tls";
import { RouterService, Standing, type Instance } from "#gen/tandem/router/v1/router_pb.js";
import { createAuthority, signLeaf, validFor } from "../../clients/cli/certs/authority.ts";
import { splitAddress } from "../../services/common/address.ts";
import { loadConfig } from "../../services/common/config.ts";
import { routerConfig } from "../../services/router/config.ts";
import { startRouter, type Router } from "../../services/router/main.ts";
import { dialRpc } from "../../services/rpc/channel.ts";
import { openTls } from "../../services/rpc/tls.ts";
import type { TlsSettings } from "../../services/rpc/tls-settings.ts";
import { simDecode, simPrefill, type Flags } from "../instance/legs.ts";
import { certificateFolder, type CertificateFolder } from "../support/certificates.ts";
import { startConsul, type TestConsul } from "../support/consul.ts";
import { silentLog } from "../support/log-sink.ts";
import { skip } from "../support/skip.ts";
import { consul } from "../support/tools.ts";
import { eventually } from "../support/waits.ts";

const TOKEN = "JOIN-TOKEN-OF-PROD";

const argvOf = (flags: Flags): string[] => Object.entries(flags).map(([key, value]) => `--${key}=${value}`);

function start(flags: Flags): Promise<Router> {
  const argv = argvOf({ "rest.listen": "127.0.0.1:0", "grpc.listen": "127.0.0.1:0", ...flags });
  return startRouter(loadConfig(routerConfig, { argv, env: {} }), { log: silentLog });
}

const flagsOf = ({ cert, key, ca }: TlsSettings): Flags => ({ "tls.cert": cert, "tls.key": key, "tls.ca": ca });

async function post(router: Router, body: object, ca: string, agent?: Agent) {
  const url = `${router.restUrl}/v1/completions`;
  if (url.startsWith("http:")) {
    const headers = { "content-type": "application/json" };
    const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(body) });
    return { status: response.status, text: await response.text() };
  }
  const sent = request(url, { method: "POST", ca, ...(agent === undefined ? {} : { agent }) });
  sent.setHeader("content-type", "application/json").end(JSON.stringify(body));
  const [response] = await once(sent, "response");
  return { status: response.statusCode as number, text: await text(response) };
}

/** Takes every call and writes down all that it hears. With a certificate it speaks TLS. */
async function startStranger(certificate?: { cert: string; key: string }) {
  const heard: string[] = [];
  const server = certificate === undefined ? createServer() : createSecureServer(certificate);
  server.on("stream", (stream, headers) => {
    heard.push(JSON.stringify(headers));
    stream.on("error", () => {});
    stream.on("data", (chunk: Buffer) => heard.push(chunk.toString("latin1")));
    stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
    stream.end();
  });
  let connections = 0;
  server.on("connection", () => connections++);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    heard: () => heard.join("\n"),
    connections: () => connections,
    [Symbol.dispose]: () => void server.close(),
  };
}

/** Registers `port` beside each genuine instance, with all that the genuine entry says. */
async function addFalseServices(agent: TestConsul, port: number, proof: "copied" | "left out"): Promise<void> {
  for (const role of ["prefill", "decode"]) {
    const [{ Service: genuine }] = await agent.get(`/v1/health/service/tandem-${role}`);
    const { proof: genuineProof, ...facts } = genuine.Meta as Record<string, string>;
    const copied = proof === "copied" && genuineProof !== undefined ? { proof: genuineProof } : {};
    await agent.put("/v1/agent/service/register", {
      ID: `${role}-${proof === "copied" ? "copy" : "fake"}`,
      Name: `tandem-${role}`,
      Address: "127.0.0.1",
      Port: port,
      Tags: genuine.Tags,
      Meta: { ...facts, ...copied, grpc_address: `127.0.0.1:${port}` },
    });
  }
}

describe("a false service in Consul", function () {
  this.timeout(60_000);
  let folder: CertificateFolder;
  before(async function () {
    const found = await consul();
    if ("missing" in found) skip(this, found.missing);
    folder = certificateFolder();
  });
  after(() => folder?.[Symbol.dispose]());

  async function attack(flags: Flags, stranger: Awaited<ReturnType<typeof startStranger>>, seenCount: number) {
    await using agent = await startConsul();
    const common = { ...flags, "registry.kind": "consul", "consul.address": agent.address };
    await using router = await start(common);
    await using _prefill = await simPrefill("p2p-zmq", common);
    await using _decode = await simDecode("p2p-zmq", common);
    const ca = folder.authority.cert;
    const ask = () => post(router, { prompt: "my secret prompt", max_tokens: 3 }, ca);
    await eventually("it serves", async () => (await ask()).status === 200, 20_000);
    await addFalseServices(agent, stranger.port, "copied");
    await addFalseServices(agent, stranger.port, "left out");
    using tls = openTls(
      {
        cert: `${flags["tls.cert"] ?? ""}`,
        key: `${flags["tls.key"] ?? ""}`,
        ca: `${flags["tls.ca"] ?? ""}`,
        peerIds: [],
      },
      { log: silentLog },
    );
    await using channel = dialRpc(router.grpcAddress, { token: `${flags["token"] ?? ""}`, tls });
    const service = channel.client(RouterService);
    let seen: readonly Instance[] = [];
    await eventually(
      "all are seen",
      async () => (seen = (await service.listInstances({})).instances).length === seenCount,
      20_000,
    );
    for (let count = 0; count < 12; count++) assert.equal((await ask()).status, 200);
    const { diagnoses } = await service.diagnose({ withoutProbes: true });
    assert.doesNotMatch(stranger.heard(), /JOIN-TOKEN|secret prompt|authorization|tandem-session/i);
    return {
      untrusted: seen.filter(({ standing }) => standing !== Standing.SERVING),
      diagnosed: diagnoses.map(({ finding }) => finding?.message ?? ""),
    };
  }

  it("hears nothing with a join token: its entries are not proven, and are not dialed", async () => {
    using stranger = await startStranger();
    const { untrusted, diagnosed } = await attack({ token: TOKEN }, stranger, 6);
    assert.deepEqual(
      untrusted.map(({ standing }) => standing),
      Array.from({ length: 4 }, () => Standing.UNTRUSTED),
    );
    for (const { reason } of untrusted) assert.match(reason, /^Not proven: /);
    assert.equal(diagnosed.filter((message) => message.startsWith("It is ignored.")).length, 4);
    assert.equal(stranger.connections(), 0);
  });

  it("hears nothing with TLS and no token: its certificate is of another authority", async () => {
    const foreign = createAuthority("foreign", validFor(1));
    using stranger = await startStranger(signLeaf(foreign, ["127.0.0.1"], validFor(1)));
    const { untrusted } = await attack(flagsOf(folder.issue("member")), stranger, 3);
    // Of several entries with one address, one counts.
    assert.deepEqual(
      untrusted.map(({ standing }) => standing),
      [Standing.UNTRUSTED],
    );
    assert.match(untrusted[0]!.reason, /unknown authority/);
    assert.ok(stranger.connections() > 0);
    assert.equal(stranger.heard(), "");
  });
});

describe("certificates that are replaced under load", function () {
  this.timeout(60_000);

  it("fail no request, and new connections get the new ones", async () => {
    using folder = certificateFolder();
    const files = folder.issue("all");
    await using router = await start(flagsOf(files));
    const common = { "registry.address": router.grpcAddress, ...flagsOf(files) };
    await using _prefills = await simPrefill("p2p-zmq", common);
    await using _decodes = await simDecode("p2p-zmq", common);
    const ca = folder.authority.cert;
    await eventually("it serves", async () => (await post(router, { prompt: "x", max_tokens: 1 }, ca)).status === 200);
    const shown = async (address: string): Promise<string> => {
      const socket = connect({ ...splitAddress(address), ca, ALPNProtocols: ["h2", "http/1.1"] });
      await once(socket, "secureConnect");
      const { fingerprint256 } = socket.getPeerCertificate();
      socket.destroy();
      return fingerprint256;
    };
    const rest = router.restUrl.replace("https://", "");
    const statuses: string[] = [];
    let over = false;
    // Half of them reuse their connections, and half make a new one for each request.
    using agents = { keep: new Agent({ keepAlive: true }), [Symbol.dispose]: () => agents.keep.destroy() };
    const load = Array.from({ length: 8 }, async (_, index) => {
      while (!over) {
        const body = { prompt: "hello", max_tokens: 50, stream: index % 2 === 0 };
        const answer = await post(router, body, ca, index < 4 ? agents.keep : undefined).catch((error: Error) => error);
        const isWhole = !("text" in answer) || index % 2 === 1 || answer.text.includes("[DONE]");
        statuses.push("text" in answer ? `${answer.status}${isWhole ? "" : " cut"}` : answer.message);
      }
    });
    for (let rotation = 0; rotation < 3; rotation++) {
      const before = [await shown(rest), await shown(router.grpcAddress)];
      const enough = statuses.length + 20;
      folder.issue("all");
      await eventually("the new one is served", async () => (await shown(rest)) !== before[0], 20_000);
      await eventually("by gRPC too", async () => (await shown(router.grpcAddress)) !== before[1], 20_000);
      await eventually("requests after it", () => statuses.length >= enough, 20_000);
    }
    over = true;
    await Promise.all(load);
    assert.deepEqual([...new Set(statuses)], ["200"]);
  });
});
