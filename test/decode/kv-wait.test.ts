// A decode engine that waits for KV is not wedged: over a real sim whose partner never answers its handshake.
import assert from "node:assert/strict";
import { createServer, request } from "node:http";
import type { AddressInfo } from "node:net";
import { nixl } from "../../services/kv/nixl.ts";
import { FirstTransfers } from "../../services/decode/first-transfers.ts";
import type { LiveEngine } from "../../services/engine/engine.ts";
import { startSimEngine } from "../../services/tiny-engine/server.ts";
import { leg, prefillLeg, refusal, reserved, simDecode, simPrefill, type SimInstance } from "../instance/legs.ts";
import { manualClock } from "../support/manual-clock.ts";
import { deferred, eventually, untilQuiet, within } from "../support/waits.ts";

async function startedLeg(prefill: SimInstance, decode: SimInstance): ReturnType<typeof reserved> {
  const pair = leg();
  const { ticket } = await prefillLeg(prefill, undefined, pair);
  const call = await reserved(decode, prefill, pair);
  call.start(ticket);
  return call;
}

describe("a decode engine whose partner does not answer", () => {
  it("outlives its longest stall many times, up to the bound of a first transfer", async () => {
    const clock = manualClock();
    await using prefill = await simPrefill("nixl", {}, { faults: ["silent-kv"] });
    await using decode = await simDecode("nixl", { stall_ms: 4_000 }, { handshakeTimeoutMs: 3_600_000 }, clock);
    const { supervisor } = decode.instance;
    const engine = supervisor.live;
    const ended = assert.rejects((await startedLeg(prefill, decode)).rest(), refusal("engine_failed"));
    await eventually("the leg runs", () => decode.instance.load().running === 1);
    let counted = deferred();
    supervisor.onChange(() => counted.resolve());
    /** From one reading of the engine's counters to the next, four in a stall. */
    const pass = async (ms: number): Promise<void> => {
      for (let passedMs = 0; passedMs < ms && supervisor.live === engine; passedMs += 1_000) {
        counted = deferred();
        clock.advance(1_000);
        await within(counted.promise, "the engine's counters");
      }
    };
    await pass(nixl.traits.firstTransferMs);
    assert.equal(supervisor.live, engine, "the same engine");
    await pass(10_000);
    assert.notEqual(supervisor.live, engine);
    await ended;
  });

  it("outlives it also where its API server is held up meanwhile and reports nothing", async () => {
    const clock = manualClock();
    let heldUp = false;
    await using prefill = await simPrefill("nixl", {}, { faults: ["silent-kv"] });
    await using engine = await startSimEngine({ role: "decode", connector: "nixl", handshakeTimeoutMs: 3_600_000 });
    const { hostname, port } = new URL(engine.url);
    const busy = createServer((req, res) => {
      // As with an engine in the process of its API server, whose connector sets up a connection.
      if (heldUp && req.method === "GET") return;
      const { method, url: path, headers } = req;
      const call = request({ hostname, port, method, path, headers, agent: false }, (answer) => {
        res.writeHead(answer.statusCode!, answer.headers);
        answer.pipe(res);
      });
      res.on("close", () => call.destroy());
      req.pipe(call.on("error", () => res.destroy()));
    });
    await new Promise<void>((done) => busy.listen(0, "127.0.0.1", done));
    const url = `http://127.0.0.1:${(busy.address() as AddressInfo).port}`;
    const decode = await simDecode("nixl", { "engine.attach": url, "engine.kind": "sim" }, {}, clock);
    const { supervisor } = decode.instance;
    const { live } = supervisor;
    heldUp = true;
    const ended = assert.rejects((await startedLeg(prefill, decode)).rest(), refusal("engine_failed"));
    await eventually("the leg runs", () => decode.instance.load().running === 1);
    const pass = async (ms: number): Promise<void> => {
      for (let passedMs = 0; passedMs < ms && supervisor.live === live; passedMs += 1_000) {
        clock.advance(1_000);
        await untilQuiet();
      }
    };
    await pass(nixl.traits.firstTransferMs);
    assert.equal(supervisor.live, live, "the same engine");
    await pass(30_000);
    assert.notEqual(supervisor.live, live);
    await ended;
    busy.close();
    busy.closeAllConnections();
    await decode[Symbol.asyncDispose]();
  });

  it("goes on when its handshake times out, and only the leg fails", async () => {
    await using prefill = await simPrefill("nixl", {}, { faults: ["silent-kv"] });
    await using decode = await simDecode("nixl", {}, { handshakeTimeoutMs: 50 });
    const engine = decode.instance.supervisor.live;
    await assert.rejects((await startedLeg(prefill, decode)).rest(), refusal("kv_transfer_failed"));
    assert.equal(decode.instance.supervisor.live, engine, "the same engine");
  });
});

describe("the first transfer from a prefill engine", () => {
  it("is waited for until its KV has come, and again after either engine has restarted", () => {
    const transfers = new FirstTransfers();
    const [one, other] = [{}, {}] as LiveEngine[];
    const first = transfers.began(one!, "p1");
    const second = transfers.began(one!, "p1");
    assert.equal(transfers.waiting, 2);
    first!(false);
    assert.equal(transfers.waiting, 1);
    second!(true);
    second!(false);
    assert.equal(transfers.waiting, 0);
    assert.equal(transfers.began(one!, "p1"), undefined);
    assert.ok(transfers.began(one!, "p1 restarted") !== undefined);
    assert.ok(transfers.began(other!, "p1") !== undefined);
  });
});
