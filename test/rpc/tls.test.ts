// Mutual TLS between two ends: who is told what is wrong with whose certificate, and what a rotation does.
import assert from "node:assert/strict";
import { createAuthority, signLeaf, validFor } from "../../clients/cli/certs/authority.ts";
import { ConfigError } from "../../services/common/config.ts";
import { peerFault, type PeerFault } from "../../services/rpc/peer-fault.ts";
import { type Tls, openTls } from "../../services/rpc/tls.ts";
import type { TlsSettings } from "../../services/rpc/tls-settings.ts";
import { EXPIRED, type CertificateFolder, certificateFolder } from "../support/certificates.ts";
import { logSink, silentLog } from "../support/log-sink.ts";
import { manualClock } from "../support/manual-clock.ts";
import {
  DECODE,
  HELLO,
  callWith,
  dial,
  dialBeating,
  eachEndedOnce,
  echo,
  rawService,
  record,
  serve,
  startRogue,
  untilState,
} from "./fixture.ts";

let folder: CertificateFolder;
const opened: Tls[] = [];
const open = (settings: TlsSettings, peerIds: readonly string[] = []): Tls => {
  const tls = openTls({ ...settings, peerIds }, { log: silentLog })!;
  opened.push(tls);
  return tls;
};

before(() => (folder = certificateFolder()));
after(() => folder[Symbol.dispose]());
afterEach(eachEndedOnce);
afterEach(() => opened.splice(0).forEach((tls) => tls[Symbol.dispose]()));

const serveEcho = (tls: Tls | undefined, options: object = {}) =>
  serve([rawService(echo, "token")], { ...(tls === undefined ? {} : { tls }), ...options });

/** How a call ends: what the caller got back, or what is wrong. */
async function call(address: string, tls: Tls | undefined): Promise<string> {
  await using channel = dial(address, { tls });
  const { call: sent, messages, ended } = record(channel);
  sent.write(HELLO);
  sent.halfClose();
  const error = await ended;
  if (error === undefined) return messages.join();
  const { kind, text }: PeerFault = peerFault(error);
  return `${kind}: ${text}`;
}

describe("mutual TLS", () => {
  it("lets members of the deployment call each other, without a token", async () => {
    await using server = await serveEcho(open(folder.issue("a")), { token: "join" });
    assert.equal(await call(server.address, open(folder.issue("b"))), "hello");
  });

  const foreign = createAuthority("another", validFor(1));
  const faults: Record<string, { peer: Parameters<CertificateFolder["issue"]>[1]; told: string }> = {
    "an expired certificate": {
      peer: { validity: EXPIRED },
      told: "certificate expired: The WHO's certificate has expired",
    },
    "a certificate of another authority": {
      peer: { authority: foreign },
      told: "unknown authority: The WHO's certificate",
    },
  };
  for (const [name, { peer, told }] of Object.entries(faults)) {
    it(`keeps out an instance with ${name}, and the caller learns why`, async () => {
      await using server = await serveEcho(open(folder.issue("a", peer)));
      assert.match(await call(server.address, open(folder.issue("b"))), new RegExp(`^${told.replace("WHO", "peer")}`));
    });

    it(`keeps out a caller with ${name}, which learns why, and the operator too`, async () => {
      const sink = logSink();
      await using server = await serveEcho(open(folder.issue("a")), { log: sink.log });
      const own = folder.issue("b", peer);
      assert.match(await call(server.address, open(own)), new RegExp(`^${told.replace("WHO", "caller")}`));
      const [line] = sink.events("a caller was refused");
      assert.match(String(line!["because"]), /^The caller's certificate/);
    });
  }

  it("keeps out a peer whose certificate is for another host", async () => {
    await using server = await serveEcho(open(folder.issue("a", { names: ["10.9.9.9", "elsewhere"] })));
    assert.match(await call(server.address, open(folder.issue("b"))), /^wrong name: The peer's certificate/);
  });

  it("keeps out a caller without a certificate, and takes a bearer token instead", async () => {
    const sink = logSink();
    await using server = await serveEcho(open(folder.issue("a")), { token: "join", log: sink.log });
    assert.match(await call(server.address, undefined), /^address: .*does it require TLS/);
    assert.equal(sink.events("a caller was refused").length, 1);
    const ca = Buffer.from(folder.authority.cert);
    await assert.rejects(callWith(server.address, DECODE, {}, ca), {
      code: "unauthenticated",
      message: /certificate is missing/,
    });
    await assert.rejects(callWith(server.address, DECODE, { authorization: "Bearer no" }, ca), {
      code: "unauthenticated",
    });
    await callWith(server.address, DECODE, { authorization: "Bearer join" }, ca).catch((error: Error) => {
      assert.doesNotMatch(String(error), /unauthenticated/);
    });
  });

  it("keeps out an instance that answers in clear", async () => {
    await using server = await startRogue(() => assert.fail("a call arrived"));
    assert.match(
      await call(server.address, open(folder.issue("b"))),
      /^no certificate: The peer's certificate is missing/,
    );
  });

  it("takes only the names in tls.peer_ids, of callers and of those that are called", async () => {
    const names = ["127.0.0.1", "spiffe://dc1.consul/ns/default/dc/dc1/svc/tandem-decode"];
    const ids = ["spiffe://dc1.consul/ns/default/dc/dc1/svc/tandem-*"];
    const member = folder.issue("member", { names });
    const other = folder.issue("other", { names: ["127.0.0.1", "spiffe://dc1.consul/ns/default/dc/dc1/svc/web"] });
    await using server = await serveEcho(open(member, ids));
    assert.equal(await call(server.address, open(member, ids)), "hello");
    assert.match(await call(server.address, open(other)), /^wrong name: The caller's certificate/);
    await using stranger = await serveEcho(open(other));
    assert.match(await call(stranger.address, open(member, ids)), /^wrong name: The peer's certificate/);
  });

  it("takes a SPIFFE id of its own trust domain for the host's name, and no other", async () => {
    const leaf = (domain: string) => folder.issue(domain, { names: [`spiffe://${domain}/ns/default/svc/x`] });
    await using server = await serveEcho(open(leaf("one.consul")));
    assert.equal(await call(server.address, open(leaf("one.consul"))), "hello");
    assert.match(await call(server.address, open(leaf("two.consul"))), /^wrong name: The peer's/);
    assert.match(await call(server.address, open(folder.issue("plain"))), /^wrong name: The peer's/);
  });

  it("shows each side that the other is alive, as without TLS", async () => {
    await using server = await serveEcho(open(folder.issue("a")));
    await using channel = dialBeating(server.address, { tls: open(folder.issue("b")) });
    await untilState(channel, "up");
  });
});

describe("a rotation of certificates", () => {
  it("serves new handshakes with the new ones, and breaks no connection", async () => {
    const clock = manualClock();
    const settings = folder.issue("rotating");
    using tls = openTls(settings, { log: silentLog, clock })!;
    await using server = await serveEcho(tls);
    await using channel = dial(server.address, { tls });
    const running = record(channel);
    running.call.write(HELLO);
    await running.received(1);
    // The authority changes too: who knows only the new one gets in with the new certificate alone.
    const next = createAuthority("next", validFor(1));
    const leaf = signLeaf(next, ["127.0.0.1"], validFor(1));
    const knowsNext = open(folder.write("next", leaf, next.cert));
    assert.match(await call(server.address, knowsNext), /^unknown authority/);
    folder.write("rotating", leaf, `${folder.authority.cert}${next.cert}`);
    clock.advance(1_000);
    assert.equal(await call(server.address, knowsNext), "hello");
    assert.equal(await call(server.address, tls), "hello");
    running.call.write(HELLO);
    await running.received(2);
    running.call.halfClose();
    assert.equal(await running.ended, undefined);
  });

  it("keeps the former ones while the new files don't fit together, and says so once", async () => {
    const clock = manualClock();
    const sink = logSink();
    const settings = folder.issue("torn");
    using tls = openTls(settings, { log: sink.log, clock })!;
    const before = tls.pems;
    const leaf = signLeaf(folder.authority, ["127.0.0.1"], validFor(1));
    folder.write("torn", { cert: leaf.cert, key: signLeaf(folder.authority, ["x"], validFor(1)).key });
    for (let polls = 0; polls < 3; polls++) clock.advance(1_000);
    assert.equal(tls.pems, before);
    assert.equal(sink.events("changed certificates can't be used; the former ones stay in use").length, 1);
    folder.write("torn", leaf);
    clock.advance(1_000);
    assert.equal(tls.pems.cert.toString(), leaf.cert);
  });

  it("needs all three files, and files that can be used", () => {
    const settings = folder.issue("a");
    assert.equal(openTls({ cert: "", key: "", ca: "", peerIds: [] }, { log: silentLog }), undefined);
    for (const wrong of [{ key: "" }, { ca: "/nowhere" }, { key: settings.ca }])
      assert.throws(() => openTls({ ...settings, ...wrong }, { log: silentLog }), ConfigError);
  });
});
