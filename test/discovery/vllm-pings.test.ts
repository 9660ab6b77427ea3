import assert from "node:assert/strict";
import { encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";
import { listenForPings, readPing, type PingedEngine, type PingListener } from "../../services/discovery/vllm-pings.ts";
import { silentLog } from "../support/log-sink.ts";
import { manualClock } from "../support/manual-clock.ts";
import { eventually } from "../support/waits.ts";

/** An engine as vLLM 0.23 pings: its KV address is its identity, one frame, no answer expected. */
async function pinging(
  listener: PingListener,
  kvAddress: string,
): Promise<{ ping(message: unknown): Promise<void>; close(): void }> {
  const socket = new Dealer({ routingId: kvAddress, linger: 0 });
  socket.connect(`tcp://${listener.address}`);
  return {
    ping: (message) => socket.send(message instanceof Buffer ? message : Buffer.from(encode(message))),
    close: () => socket.close(),
  };
}

const PREFILL = { type: "P", http_address: "10.0.0.1:20003", zmq_address: "10.0.0.1:21001" };
const DECODE = { type: "D", http_address: "10.0.0.2:20005", zmq_address: "10.0.0.2:22001" };

describe("vLLM's pings", () => {
  const told: string[] = [];
  const clock = manualClock();
  let listener: PingListener;
  /** KV addresses by HTTP address. */
  const engines = new Map<string, string>();
  const tell = (what: string, { role, httpAddress, kvAddress }: PingedEngine): void =>
    void told.push(`${what} ${role} ${httpAddress} ${kvAddress}`);

  beforeEach(async () => {
    told.length = 0;
    engines.clear();
    listener = await listenForPings({
      listen: "127.0.0.1:0",
      log: silentLog,
      clock,
      limit: 3,
      came(engine) {
        engines.set(engine.httpAddress, engine.kvAddress);
        tell("came", engine);
      },
      left(engine) {
        engines.delete(engine.httpAddress);
        tell("left", engine);
      },
    });
  });
  afterEach(() => listener[Symbol.asyncDispose]());

  it("make an engine known once, with its role and both addresses", async () => {
    const engine = await pinging(listener, PREFILL.zmq_address);
    for (let count = 0; count < 3; count++) await engine.ping(PREFILL);
    await eventually("it came", () => told.length > 0);
    assert.deepEqual(told, ["came prefill 10.0.0.1:20003 10.0.0.1:21001"]);
    engine.close();
  });

  it("age each for itself, though others go on", async () => {
    const [one, two] = [await pinging(listener, PREFILL.zmq_address), await pinging(listener, DECODE.zmq_address)];
    await one.ping(PREFILL);
    await two.ping(DECODE);
    await eventually("both came", () => told.length === 2);
    // The first falls silent, though it came first and the other pings on.
    for (let second = 0; second < 11; second++) {
      clock.advance(1_000);
      await two.ping(DECODE);
      // Pings of one socket are heard in their order, and one with a new KV address is reported.
      const other = { type: "D", http_address: "10.0.0.3:20007", zmq_address: `10.0.0.3:${23_000 + second}` };
      await two.ping(other);
      await eventually("both are heard", () => told.at(-1)!.endsWith(other.zmq_address));
    }
    assert.ok(told.includes("left prefill 10.0.0.1:20003 10.0.0.1:21001"));
    assert.deepEqual([...engines.keys()], ["10.0.0.2:20005", "10.0.0.3:20007"]);
    two.close();
    clock.advance(11_000);
    assert.equal(engines.size, 0, "the last of its role ages too");
    await one.ping(PREFILL);
    await eventually("and comes back", () => engines.size === 1);
    one.close();
  });

  it("take an engine with a new KV address for another one", async () => {
    const engine = await pinging(listener, "x");
    await engine.ping(DECODE);
    await engine.ping({ ...DECODE, zmq_address: "10.0.0.2:22002" });
    await eventually("it changed", () => told.length === 3);
    assert.deepEqual(
      told.map((line) => line.split(" ")[0]),
      ["came", "left", "came"],
    );
    assert.deepEqual([...engines.values()], ["10.0.0.2:22002"]);
    engine.close();
  });

  it("survive messages that are not pings, and ignore engines beyond the limit", async () => {
    const stranger = await pinging(listener, "s");
    await stranger.ping(Buffer.from([0xc1, 0xff, 0]));
    await stranger.ping({ type: "X", http_address: "a:1", zmq_address: "a:2" });
    for (let index = 1; index <= 5; index++) await stranger.ping({ ...DECODE, http_address: `10.0.0.9:${index}` });
    await eventually("three are known", () => engines.size === 3);
    assert.equal(told.length, 3);
    stranger.close();
  });

  it("tell a wrapper the KV address of its own engine", async () => {
    const waiting = listener.awaitPort(20_005, 60_000);
    const engine = await pinging(listener, "w");
    await engine.ping(DECODE);
    assert.equal((await waiting)?.kvAddress, DECODE.zmq_address);
    assert.equal((await listener.awaitPort(20_005, 1))?.kvAddress, DECODE.zmq_address);
    const never = listener.awaitPort(1, 5_000);
    clock.advance(5_000);
    assert.equal(await never, undefined);
    engine.close();
  });

  it("are read strictly", () => {
    assert.deepEqual(readPing({ ...DECODE, more: 1 }), {
      role: "decode",
      httpAddress: "10.0.0.2:20005",
      kvAddress: "10.0.0.2:22001",
    });
    for (const wrong of [
      null,
      1,
      "P",
      [],
      {},
      { ...DECODE, type: "d" },
      { ...DECODE, http_address: "10.0.0.2" },
      { ...DECODE, zmq_address: "h:0" },
      { ...DECODE, zmq_address: "h:65536" },
      { ...DECODE, http_address: "http://h:1" },
      { ...DECODE, http_address: "::1:80" },
      { ...DECODE, http_address: 1 },
    ]) {
      assert.equal(readPing(wrong), undefined, JSON.stringify(wrong));
    }
  });
});
