import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { create } from "@bufbuild/protobuf";
import { InfoSchema, Role, type Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { RegistryService } from "#gen/tandem/registry/v1/registry_pb.js";
import type { Clock } from "../../services/common/clock.ts";
import { registerAtRouter, registryHub, type RegistryHub } from "../../services/discovery/embedded.ts";
import { together } from "../../services/discovery/registry.ts";
import { dialRpc } from "../../services/rpc/channel.ts";
import { serveRpc, type RpcServer } from "../../services/rpc/server.ts";
import { logSink, silentLog } from "../support/log-sink.ts";
import { manualClock } from "../support/manual-clock.ts";
import { eventually, freePort, untilQuiet } from "../support/waits.ts";

const info = (change: Partial<Info> = {}): Info =>
  create(InfoSchema, {
    instanceId: "a",
    role: Role.DECODE,
    model: "m",
    connector: "nixl",
    grpcAddress: "127.0.0.1:1",
    ...change,
  } as never);
const serve = (hub: RegistryHub, listen = "127.0.0.1:0", token?: string, clock?: Clock): Promise<RpcServer> =>
  serveRpc({ listen, services: [hub.service], token, log: silentLog, graceMs: 0, ...(clock && { clock }) });
const refusal = (code: string) => (error: unknown) => (error as { code?: string }).code === code;

/** Takes connections and says nothing. */
async function silentServer(): Promise<{ readonly address: string; readonly connections: number } & AsyncDisposable> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => void sockets.add(socket.on("error", () => {}))).listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    get connections() {
      return sockets.size;
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
    },
  };
}

function watched(hub: RegistryHub): () => string[] {
  let ids: string[] = [];
  hub.watch((entries, objections) => {
    const text = ({ instanceId, kvAddress }: Info): string => `${instanceId}@${kvAddress}`;
    const said = ({ instanceId }: Info): string => objections?.get(instanceId)?.kind ?? "";
    ids = entries.map((entry) => `${text(entry)} ${said(entry)}`.trimEnd()).sort();
  });
  return () => ids;
}

describe("the embedded registry", () => {
  it("knows an instance while its call lives, and its last message", async () => {
    const hub = registryHub({ limit: 4 });
    await using server = await serve(hub);
    const ids = watched(hub);
    let self = info();
    const registration = registerAtRouter(() => self, { address: server.address, log: silentLog });
    await eventually("it is there", () => ids()[0] === "a@");
    self = info({ kvAddress: "127.0.0.1:5" });
    registration.update();
    await eventually("it is up to date", () => ids()[0] === "a@127.0.0.1:5");
    await registration[Symbol.asyncDispose]();
    await eventually("it is gone", () => ids().length === 0);
    await registration[Symbol.asyncDispose]();
  });

  it("is found again by all instances after a restart of the router", async () => {
    const port = await freePort();
    const first = await serve(registryHub({ limit: 4 }), `127.0.0.1:${port}`);
    const registrations = ["a", "b"].map((instanceId) =>
      registerAtRouter(() => info({ instanceId }), { address: first.address, log: silentLog }),
    );
    await first[Symbol.asyncDispose]();
    const hub = registryHub({ limit: 4 });
    await using _second = await serve(hub, `127.0.0.1:${port}`);
    const ids = watched(hub);
    await eventually("both are back", () => ids().length === 2);
    for (const registration of registrations) await registration[Symbol.asyncDispose]();
  });

  it("may come up after its instances", async () => {
    const port = await freePort();
    const registration = registerAtRouter(() => info(), { address: `127.0.0.1:${port}`, log: silentLog });
    const hub = registryHub({ limit: 4 });
    await using _server = await serve(hub, `127.0.0.1:${port}`);
    const ids = watched(hub);
    await eventually("it is there", () => ids().length === 1);
    await registration[Symbol.asyncDispose]();
  });

  it("is several where an instance has several routers, and one that is silent or away holds no other up", async () => {
    await using silent = await silentServer();
    const [one, two] = [registryHub({ limit: 4 }), registryHub({ limit: 4 })];
    await using first = await serve(one);
    const port = await freePort();
    const addresses = [silent.address, `127.0.0.1:${port}`, first.address];
    let self = info();
    const registration = together(
      addresses.map((address) => registerAtRouter(() => self, { address, log: silentLog })),
    );
    await eventually("the first knows it", () => watched(one)()[0] === "a@");
    await using second = await serve(two, `127.0.0.1:${port}`);
    await eventually("the second knows it once it is there", () => watched(two)()[0] === "a@");
    self = info({ kvAddress: "127.0.0.1:5" });
    registration.update();
    await eventually("both are up to date", () => [one, two].every((hub) => watched(hub)()[0] === "a@127.0.0.1:5"));
    await second[Symbol.asyncDispose]();
    assert.deepEqual(watched(one)(), ["a@127.0.0.1:5"]);
    await registration[Symbol.asyncDispose]();
    await eventually("the first knows that it left", () => watched(one)().length === 0);
  });

  it("lets an entry lapse whose call broke, and keeps it no longer than its successor at the same address", async () => {
    const clock = manualClock();
    const hub = registryHub({ limit: 4, clock });
    await using server = await serve(hub);
    const ids = watched(hub);
    const hold = async (instanceId: string): Promise<AbortController> => {
      const call = new AbortController();
      async function* say(): AsyncGenerator<{ info: Info }> {
        yield { info: info({ instanceId }) };
        await new Promise((done) => call.signal.addEventListener("abort", done));
      }
      const registered = dialRpc(server.address).client(RegistryService).register(say(), { signal: call.signal });
      const answers = registered[Symbol.asyncIterator]();
      await answers.next();
      answers.next().catch(() => {});
      return call;
    };
    (await hold("a")).abort();
    await clock.untilPending();
    clock.advance(4_999);
    assert.deepEqual(ids(), ["a@"]);
    await clock.pass(1);
    assert.deepEqual(ids(), ["a@ lapsed"]);
    (await hold("b")).abort();
    await clock.untilPending();
    const next = await hold("c");
    assert.deepEqual(ids(), ["c@"]);
    next.abort();
    await clock.untilPending();
    clock.stall(60_000); // The router itself could not run for a minute.
    await untilQuiet();
    assert.deepEqual(ids(), ["c@"]);
  });

  it("lets the entry of an instance lapse that falls silent, and an instance looks for a router that does", async () => {
    const clock = manualClock();
    const hub = registryHub({ limit: 4, graceMs: 20 });
    await using server = await serve(hub, "127.0.0.1:0", undefined, clock);
    const ids = watched(hub);
    // Its clock does not move: it says its message once, and then nothing more.
    registerAtRouter(() => info(), { address: server.address, log: silentLog, clock: manualClock() });
    await eventually("it is there", () => ids().length === 1);
    await clock.pass(11_500);
    assert.deepEqual(ids(), ["a@"]);
    await clock.pass(1_000);
    await eventually("its entry lapsed", () => ids()[0] === "a@ lapsed");

    await using silent = await silentServer();
    const registration = registerAtRouter(() => info(), { address: silent.address, log: silentLog, clock });
    await eventually("a connection", () => silent.connections === 1);
    await clock.pass(2_500);
    await eventually("another one", () => silent.connections === 2);
    await Promise.all([registration[Symbol.asyncDispose](), clock.pass(1_000)]);
  });

  it("believes the newest call of an instance, and the end of the older one takes nothing away", async () => {
    const hub = registryHub({ limit: 4 });
    await using server = await serve(hub);
    const ids = watched(hub);
    const old = registerAtRouter(() => info(), { address: server.address, log: silentLog });
    await eventually("the old one is there", () => ids()[0] === "a@");
    const next = registerAtRouter(() => info({ kvAddress: "127.0.0.1:7" }), {
      address: server.address,
      log: silentLog,
    });
    await eventually("the new one is there", () => ids()[0] === "a@127.0.0.1:7");
    await old[Symbol.asyncDispose]();
    await untilQuiet();
    assert.deepEqual(ids(), ["a@127.0.0.1:7"]);
    await next[Symbol.asyncDispose]();
  });

  it("gives an instance the reason why it is kept out, each time it changes", async () => {
    const port = await freePort();
    const address = `127.0.0.1:${port}`;
    const sink = logSink();
    await using _ = registerAtRouter(() => info(), { address, token: "wrong", log: sink.log });
    const faults = (): unknown[] => sink.events("not registered; will keep retrying").map(({ fault }) => fault);
    await eventually("nothing is there", () => faults().length === 1, 20_000);
    const old = await serveRpc({ listen: address, services: [], token: "wrong", log: silentLog, graceMs: 0 });
    await eventually("no registry is there", () => faults().length === 2, 20_000);
    await old[Symbol.asyncDispose]();
    await using server = await serve(registryHub({ limit: 4 }), address, "right");
    await eventually("the token is wrong", () => faults().includes("credentials"), 20_000);
    assert.deepEqual(
      faults().filter((fault, index) => index < 2 || fault === "credentials"),
      ["address", "version", "credentials"],
    );
    const { because } = sink.lines.at(-1)!;
    assert.match(String(because), /^The join tokens differ\. .*TANDEM_TOKEN/);
    assert.equal(server.address, address);
  });

  it("refuses a malformed entry, one too many, and a caller without the token", async () => {
    const hub = registryHub({ limit: 1 });
    await using server = await serve(hub, "127.0.0.1:0", "join");
    const register = async (token: string | undefined, what: Info | undefined) => {
      await using channel = dialRpc(server.address, { token });
      const hold = new Promise<void>(() => {});
      async function* requests() {
        yield what === undefined ? {} : { info: what };
        await hold;
      }
      for await (const { routerId } of channel.client(RegistryService).register(requests())) return routerId;
      return undefined;
    };
    await assert.rejects(register(undefined, info()), refusal("unauthenticated"));
    for (const bad of [
      undefined,
      info({ instanceId: "" }),
      info({ role: Role.UNSPECIFIED }),
      info({ model: "" }),
      info({ grpcAddress: "x" }),
      info({ kvAddress: "no port" }),
    ]) {
      await assert.rejects(register("join", bad), refusal("invalid_request"));
    }
    const held = registerAtRouter(() => info(), { address: server.address, token: "join", log: silentLog });
    const ids = watched(hub);
    await eventually("one is there", () => ids().length === 1);
    await assert.rejects(register("join", info({ instanceId: "b" })), refusal("instance_busy"));
    assert.ok((await register("join", info())) !== "");
    await held[Symbol.asyncDispose]();
  });
});
