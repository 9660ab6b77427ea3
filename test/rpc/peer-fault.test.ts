// Real peers that can't be used, each for another reason.
import assert from "node:assert/strict";
import { createServer as createHttpServer } from "node:http";
import { createServer, type AddressInfo, type Server } from "node:net";
import { RegistryService } from "#gen/tandem/registry/v1/registry_pb.js";
import { ServiceError } from "../../services/common/errors.ts";
import { registryHub } from "../../services/discovery/embedded.ts";
import { peerFault, type PeerFault } from "../../services/rpc/peer-fault.ts";
import { serveRpc } from "../../services/rpc/server.ts";
import { dialRpc } from "../../services/rpc/channel.ts";
import { silentLog } from "../support/log-sink.ts";
import { freePort } from "../support/waits.ts";

/** What is wrong with the peer at `address`, as one who registers there learns it. */
async function faultAt(address: string, o: { token?: string; timeoutMs?: number } = {}): Promise<PeerFault> {
  const channel = dialRpc(address, { token: o.token });
  const register = async function* (): AsyncGenerator<object> {
    yield {};
  };
  try {
    for await (const _ of channel.client(RegistryService).register(register(), { timeoutMs: o.timeoutMs })) break;
  } catch (error) {
    return peerFault(error);
  } finally {
    await channel[Symbol.asyncDispose]();
  }
  return assert.fail("it did not fail");
}

async function listening(server: Server): Promise<{ address: string } & Disposable> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return { address: `127.0.0.1:${port}`, [Symbol.dispose]: () => void server.close() };
}

describe("the fault of a peer", () => {
  it("is its credentials, its version, or a refusal in its own words", async () => {
    const services = [registryHub({ limit: 1 }).service];
    await using server = await serveRpc({
      listen: "127.0.0.1:0",
      services,
      token: "right",
      log: silentLog,
      graceMs: 0,
    });
    await using old = await serveRpc({ listen: "127.0.0.1:0", services: [], log: silentLog, graceMs: 0 });
    const wrong = await faultAt(server.address, { token: "wrong" });
    assert.equal(wrong.kind, "credentials");
    assert.match(wrong.text, /^The join tokens differ/);
    assert.equal((await faultAt(server.address)).kind, "credentials");
    const version = await faultAt(old.address);
    assert.equal(version.kind, "version");
    assert.match(version.text, /RegistryService/);
    assert.deepEqual(await faultAt(server.address, { token: "right" }), { kind: "refused", text: "info is missing." });
  });

  it("is its address if no server listens there, or one that does not speak gRPC", async () => {
    const nothing = await faultAt(`127.0.0.1:${await freePort()}`);
    assert.equal(nothing.kind, "address");
    assert.match(nothing.text, /ECONNREFUSED/);
    assert.equal((await faultAt("nowhere.invalid:1")).kind, "address");
    using web = await listening(createHttpServer((_, response) => response.end("hello")));
    assert.equal((await faultAt(web.address)).kind, "address");
  });

  it("is a timeout if the peer is silent", async () => {
    using mute = await listening(createServer((socket) => socket.on("error", () => {})));
    assert.equal((await faultAt(mute.address, { timeoutMs: 100 })).kind, "timeout");
  });

  it("is a refusal if the error did not come from a connection", () => {
    assert.equal(peerFault(new ServiceError("instance_busy", "The registry is full.")).kind, "refused");
    assert.equal(peerFault(new TypeError("a bug")).kind, "refused");
  });
});
