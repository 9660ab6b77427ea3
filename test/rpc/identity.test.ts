// Who is told what before it has proven who it is. The fakes here record all that reaches them.
import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, type Socket, connect, createServer } from "node:net";
import { splitAddress } from "../../services/common/address.ts";
import { SESSION_HEADER } from "../../services/rpc/prove.ts";
import { logSink } from "../support/log-sink.ts";
import { deferred } from "../support/waits.ts";
import {
  DECODE,
  HELLO,
  callWith,
  codeOf,
  dial,
  eachEndedOnce,
  echo,
  rawService,
  record,
  serve,
  startRogue,
} from "./fixture.ts";

const TOKEN = "the-join-token";
const PROMPT = Buffer.from("my secret prompt");

const serveEcho = (token: string, options: object = {}) => serve([rawService(echo, "token")], { token, ...options });

/** Opens a call whose first message is a prompt, and returns how the call ended. */
async function sendPrompt(address: string): Promise<{ code: string; cause: string }> {
  await using channel = dial(address, { token: TOKEN });
  const { call, ended } = record(channel);
  call.write(PROMPT);
  call.halfClose();
  const error = await ended;
  return { code: codeOf(error), cause: error?.cause instanceof Error ? error.cause.message : "" };
}

/** A TCP relay to `target` that keeps every byte. */
async function startRelay(target: () => string) {
  const bytes: Buffer[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((here) => {
    const there = connect(splitAddress(target()));
    for (const [from, to] of [
      [here, there],
      [there, here],
    ] as const) {
      sockets.add(from);
      from.on("error", () => {}).on("close", () => to.destroy());
      from.on("data", (chunk) => {
        bytes.push(chunk);
        to.write(chunk);
      });
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    heard: () => Buffer.concat(bytes).toString("latin1"),
    [Symbol.dispose]() {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}

describe("a peer that does not know the join token", () => {
  afterEach(eachEndedOnce);

  it("hears neither token nor prompt, whatever it answers", async () => {
    const heard: string[] = [];
    await using rogue = await startRogue((stream) => {
      heard.push(JSON.stringify(stream.sentHeaders ?? {}));
      stream.on("data", (chunk: Buffer) => heard.push(chunk.toString("latin1")));
      // As a server that takes every call.
      stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
      stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
      stream.end();
    });
    rogue.server.on("stream", (_stream, headers) => heard.push(JSON.stringify(headers)));
    assert.equal((await sendPrompt(rogue.address)).code, "instance_unavailable");
    const all = heard.join("\n");
    assert.match(all, /IdentityService\/Prove/);
    assert.doesNotMatch(all, /the-join-token|secret prompt|DecodeService|authorization/i);
  });

  it("hears nothing when it speaks the protocol with a token of its own", async () => {
    const sink = logSink();
    await using server = await serveEcho("another-token", { log: sink.log });
    using relay = await startRelay(() => server.address);
    assert.deepEqual(await sendPrompt(server.address), {
      code: "instance_unavailable",
      cause: "The join tokens differ. Start both with the same one (TANDEM_TOKEN).",
    });
    assert.equal(sink.events("a caller was refused").length, 1);
    await sendPrompt(relay.address);
    assert.doesNotMatch(relay.heard(), /the-join-token|secret prompt/);
  });

  it("is not trusted for having no token", async () => {
    await using server = await serveEcho("");
    assert.match((await sendPrompt(server.address)).cause, /^This server has no join token/);
  });
});

describe("a relay to a genuine instance", () => {
  afterEach(eachEndedOnce);

  it("is refused by the instance, which was not dialed under that address", async () => {
    await using server = await serveEcho(TOKEN);
    using relay = await startRelay(() => server.address);
    const { code, cause } = await sendPrompt(relay.address);
    assert.equal(code, "instance_unavailable");
    assert.match(cause, /address that is not this server's/);
    assert.doesNotMatch(relay.heard(), /the-join-token|secret prompt/);
  });

  it("is a proxy of the operator's if the instance advertises its address", async () => {
    let target = "";
    using proxy = await startRelay(() => target);
    await using server = await serveEcho(TOKEN, { advertise: proxy.address });
    target = server.address;
    for (const address of [proxy.address, server.address]) assert.equal((await sendPrompt(address)).code, "ok");
    assert.match(proxy.heard(), /my secret prompt/);
    assert.doesNotMatch(proxy.heard(), /the-join-token/);
  });
});

describe("the session of a connection", () => {
  afterEach(eachEndedOnce);

  it("is worth nothing on another connection", async () => {
    const seen = deferred<string>();
    await using server = await serve(
      [
        rawService((call) => {
          seen.resolve(call.header(SESSION_HEADER)!);
          echo(call);
        }, "token"),
      ],
      { token: TOKEN },
    );
    await using channel = dial(server.address, { token: TOKEN });
    const first = record(channel);
    first.call.write(HELLO);
    await first.received(1);
    const session = await seen.promise;
    assert.equal(Buffer.from(session, "base64url").length, 32);

    await assert.rejects(callWith(server.address, DECODE, { [SESSION_HEADER]: session }), {
      code: "unauthenticated",
      message: /^Nothing was proven on this connection/,
    });
    first.call.halfClose();
    assert.equal(await first.ended, undefined);
  });
});
