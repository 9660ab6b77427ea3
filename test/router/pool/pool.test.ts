import assert from "node:assert/strict";
import { create } from "@bufbuild/protobuf";
import { InfoSchema, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { systemClock } from "../../../services/common/clock.ts";
import { createMetrics } from "../../../services/common/metrics.ts";
import { serveRpc } from "../../../services/rpc/server.ts";
import { misfitOf } from "../../../services/router/pool/compat.ts";
import { createPool } from "../../../services/router/pool/pool.ts";
import type { Pool } from "../../../services/router/pool/pool.ts";
import { silentLog } from "../../support/log-sink.ts";
import { manualClock } from "../../support/manual-clock.ts";
import { freePort } from "../../support/waits.ts";
import { startDecode, startPrefill } from "../support/fake-instance.ts";
import { standingIn } from "../support/fleet.ts";
import { instanceIn, seenIn, untilPool, untilStanding } from "../support/pool-waits.ts";

const start = (): Pool => createPool({ log: silentLog, clock: systemClock });

describe("the pool", () => {
  it("gives an instance legs once it reports that it serves, and passes its reasons on", async () => {
    await using prefill = await startPrefill({ maxModelLen: 4096 });
    await using decode = await startDecode({ maxModelLen: 2048 });
    await using pool = start();
    pool.update([prefill.info, decode.info]);
    assert.equal(standingIn(pool.view, "d1") === "serves", false);
    assert.match(seenIn(pool, "d1")!.standing.text, /not reported its load/);
    await untilStanding(pool, "d1", "serves");
    await untilStanding(pool, "p1", "serves");
    assert.deepEqual(
      [...pool.view.models.values()].map(({ name, maxModelLen }) => [name, maxModelLen]),
      [["tiny", 2048]],
    );
    assert.equal(instanceIn(pool, "d1")!.load!.freeSlots, 64);
    assert.equal(seenIn(pool, "d1")!.standing.text, "");
  });

  for (const [state, condition] of [
    [State.STARTING, "starting"],
    [State.DRAINING, "draining"],
    [State.STOPPED, "stopped"],
  ] as const) {
    it(`takes out an instance that reports ${condition}, and takes it back when it serves`, async () => {
      await using decode = await startDecode();
      await using pool = start();
      pool.update([decode.info]);
      await untilStanding(pool, "d1", "serves");
      decode.load({ state, reason: "for a while" });
      await untilStanding(pool, "d1", condition);
      assert.equal(standingIn(pool.view, "d1") === "serves", false);
      assert.equal(seenIn(pool, "d1")!.standing.text, "for a while");
      decode.load({ state: State.SERVING, reason: "" });
      await untilStanding(pool, "d1", "serves");
    });
  }

  it("takes out an instance at once when its connection breaks", async () => {
    const decode = await startDecode();
    await using pool = start();
    pool.update([decode.info]);
    await untilStanding(pool, "d1", "serves");
    await decode[Symbol.asyncDispose]();
    await untilStanding(pool, "d1", "unreachable");
  });

  it("counts an instance as silent after 2 s without a heartbeat, and takes it back with the next one", async () => {
    const clock = manualClock();
    await using decode = await startDecode();
    await using pool = createPool({ log: silentLog, clock });
    pool.update([decode.info]);
    await untilStanding(pool, "d1", "serves");
    decode.mute();
    await clock.pass(1_250);
    assert.equal(standingIn(pool.view, "d1"), "serves");
    await clock.pass(1_000);
    assert.equal(standingIn(pool.view, "d1"), "silent");
    assert.match(seenIn(pool, "d1")!.standing.text, /2 s/);
    // It calls again, and hears.
    decode.mute(false);
    const back = untilStanding(pool, "d1", "serves");
    const timer = setInterval(() => clock.advance(100), 5);
    await back.finally(() => clearInterval(timer));
  });

  it("dials an instance again that did not listen yet", async () => {
    await using pool = start();
    const port = await freePort();
    pool.update([create(InfoSchema, { instanceId: "d9", role: 2, model: "tiny", grpcAddress: `127.0.0.1:${port}` })]);
    await untilPool(pool, "a refused connection", () => /reached/.test(seenIn(pool, "d9")!.standing.text));
  });

  it("takes new facts of an instance without losing its load", async () => {
    await using decode = await startDecode({ kvAddress: "127.0.0.1:1" });
    await using pool = start();
    pool.update([decode.info]);
    await untilStanding(pool, "d1", "serves");
    pool.update([create(InfoSchema, { ...decode.info, kvAddress: "127.0.0.1:2" })]);
    assert.equal(instanceIn(pool, "d1")!.info.kvAddress, "127.0.0.1:2");
    assert.equal(standingIn(pool.view, "d1"), "serves");
  });

  it("prefers the instance's own KV address over the registry's", async () => {
    await using decode = await startDecode();
    await using pool = start();
    pool.update([decode.info]);
    await untilStanding(pool, "d1", "serves");
    assert.equal(instanceIn(pool, "d1")!.info.kvAddress, decode.info.kvAddress);
    decode.load({ kvAddress: "127.0.0.1:9" });
    await untilPool(pool, "its new address", () => instanceIn(pool, "d1")!.info.kvAddress === "127.0.0.1:9");
    pool.update([decode.info]);
    assert.equal(instanceIn(pool, "d1")!.info.kvAddress, "127.0.0.1:9");
  });

  it("keeps an instance that left until its last leg has ended, and gives it no new one", async () => {
    await using decode = await startDecode();
    await using pool = start();
    pool.update([decode.info]);
    await untilStanding(pool, "d1", "serves");
    const member = instanceIn(pool, "d1")!;
    pool.legStarted(member);
    pool.update([]);
    assert.equal(standingIn(pool.view, "d1"), "left");
    assert.equal(pool.view.models.size, 0);
    pool.legEnded(member, "good");
    assert.equal(instanceIn(pool, "d1"), undefined);
  });

  it("drains an instance at once by its own flag, and later by the instance's report", async () => {
    await using decode = await startDecode();
    await using pool = start();
    pool.update([decode.info]);
    await untilStanding(pool, "d1", "serves");
    const drained = pool.drain("d1", false, "upgrade");
    assert.equal(standingIn(pool.view, "d1"), "draining");
    assert.equal(await drained, 7);
    assert.deepEqual(decode.drains, ["upgrade"]);
    await untilPool(pool, "the instance's own word", () => instanceIn(pool, "d1")!.load!.state === State.DRAINING);
    // Somebody else takes it back: this router need not be asked.
    decode.load({ state: State.SERVING });
    await untilStanding(pool, "d1", "serves");
  });

  it("gives no leg to an instance that did not confirm a drain", async () => {
    const decode = await startDecode();
    await using pool = start();
    pool.update([decode.info]);
    await untilStanding(pool, "d1", "serves");
    await decode[Symbol.asyncDispose]();
    await assert.rejects(pool.drain("d1", false), { code: "instance_unavailable" });
    assert.equal(standingIn(pool.view, "d1"), "draining");
    await assert.rejects(pool.drain("d2", false), { code: "not_found" });
  });

  it("takes out an instance on which leg after leg fails, until a probe succeeds", async () => {
    const clock = manualClock();
    await using prefill = await startPrefill();
    await using decode = await startDecode();
    await using other = await startDecode({ instanceId: "d2" });
    await using pool = createPool({ log: silentLog, clock, breaker: { failureLimit: 5, probeEveryMs: 500 } });
    pool.update([prefill.info, decode.info, other.info]);
    await untilStanding(pool, "p1", "serves");
    for (const id of ["d1", "d2"]) await untilStanding(pool, id, "serves");
    const member = instanceIn(pool, "d1")!;
    for (let count = 0; count < 5; count += 1) {
      assert.equal(standingIn(pool.view, "d1"), "serves");
      pool.legStarted(member);
      pool.legEnded(member, "bad");
    }
    assert.equal(standingIn(pool.view, "d1"), "failing");
    // Neither time nor its own word brings it back.
    clock.stall(1_900);
    const loaded = untilPool(pool, "its next load", () => instanceIn(pool, "d1")!.load!.running === 1);
    decode.load({ running: 1 });
    await loaded;
    assert.equal(standingIn(pool.view, "d1"), "failing");
    const due = (): string[] => pool.probes.due(clock.nowMs()).instances.map(({ instanceId }) => instanceId);
    assert.deepEqual(due(), ["d1"]);
    pool.probes.sending(instanceIn(pool, "p1")!, member);
    assert.deepEqual(due(), [], "not twice within the pause");
    pool.probes.succeeded(instanceIn(pool, "p1")!, member);
    assert.equal(standingIn(pool.view, "d1"), "serves");
    assert.equal(pool.probes.dueMs, Infinity);
    pool.legStarted(member);
    pool.legEnded(member, "bad");
    assert.equal(standingIn(pool.view, "d1"), "failing", "it is on probation");
  });

  it("keeps its view while legs and loads change, and makes a new one when a standing changes", async () => {
    await using decode = await startDecode({ slotLimit: 64 });
    await using pool = start();
    pool.update([decode.info]);
    await untilStanding(pool, "d1", "serves");
    const { view } = pool;
    const one = instanceIn(pool, "d1")!;
    pool.legStarted(one);
    pool.legEnded(one, "good");
    const loaded = untilPool(pool, "the load", () => one.load!.running === 3);
    decode.load({ running: 3, freeSlots: 4 });
    await loaded;
    assert.equal(pool.view, view);
    assert.equal(view.models.get("tiny")!.slots, 4);
    decode.load({ state: State.DRAINING });
    await untilStanding(pool, "d1", "draining");
    assert.notEqual(pool.view, view);
    assert.equal(standingIn(view, "d1"), "serves", "the old view says what was");
  });

  it("distinguishes an instance with another token from one that can't be reached", async () => {
    await using decode = await startDecode({}, undefined, "right");
    await using pool = createPool({ log: silentLog, clock: systemClock, token: "wrong" });
    pool.update([decode.info]);
    await untilStanding(pool, "d1", "untrusted");
    assert.match(seenIn(pool, "d1")!.standing.text, /\(credentials\): The join tokens differ/);
  });

  it("names an instance of another version, which does not know the router's calls", async () => {
    await using old = await serveRpc({ listen: "127.0.0.1:0", services: [], log: silentLog, graceMs: 0 });
    await using pool = start();
    pool.update([create(InfoSchema, { instanceId: "d1", role: 2, model: "tiny", grpcAddress: old.address })]);
    await untilStanding(pool, "d1", "denied");
    assert.match(seenIn(pool, "d1")!.standing.text, /Run the same version on both/);
  });

  it("keeps the figures for policies current", async () => {
    await using prefill = await startPrefill();
    await using decode = await startDecode();
    await using pool = start();
    pool.update([prefill.info, decode.info]);
    for (const [id, instance] of [
      ["p1", prefill],
      ["d1", decode],
    ] as const) {
      await untilStanding(pool, id, "serves");
      const loaded = untilPool(pool, "the load", () => instanceIn(pool, id)!.load!.running === 3);
      instance.load({ running: 3, reserved: 1, freeSlots: 4, queuedTokens: 100 });
      await loaded;
      const member = instanceIn(pool, id)!;
      pool.legStarted(member, 50);
      pool.legStarted(member, 7);
      // Prompts that wait for their prefill are no work of a decode instance.
      const queuedTokens = id === "p1" ? 157 : 0;
      const { legs, queuedTokens: queued, running, freeSlots } = instanceIn(pool, id)!;
      assert.deepEqual(
        { legs, queued, running, freeSlots },
        { legs: 2, queued: queuedTokens, running: 6, freeSlots: 2 },
      );
      pool.legEnded(member, "good");
      assert.equal(instanceIn(pool, id)!.freeSlots, 3);
    }
  });

  it("counts instances by role and standing, and tracks no more than its limit", async () => {
    await using decode = await startDecode();
    const metrics = createMetrics();
    await using pool = createPool({ log: silentLog, clock: systemClock, metrics, limit: 1 });
    pool.update([decode.info, create(InfoSchema, { ...decode.info, instanceId: "d2" })]);
    await untilStanding(pool, "d1", "serves");
    assert.equal(pool.view.decode.length, 1);
    assert.match(await metrics.text(), /tandem_pool_instances\{role="decode",state="serving"\} 1/);
  });
});

describe("a pair of instances", () => {
  const info = create(InfoSchema, {
    model: "tiny",
    connector: "p2p-nccl",
    engineVersion: "0.23.0",
    dtype: "bfloat16",
    blockSize: 16,
    tpSize: 1,
  });
  it("fits if all facts agree, or one side does not report them", () => {
    assert.equal(misfitOf(info, info), undefined);
    assert.equal(
      misfitOf(info, create(InfoSchema, { ...info, dtype: "", blockSize: 0, tpSize: 0, engineVersion: "" })),
      undefined,
    );
  });
  for (const [key, value] of Object.entries({
    model: "big",
    connector: "nixl",
    engineVersion: "0.24.0",
    dtype: "float16",
    blockSize: 32,
    tpSize: 2,
  })) {
    it(`doesn't fit if ${key} differs, and names the fact`, () => {
      const misfit = misfitOf(info, create(InfoSchema, { ...info, [key]: value }));
      assert.match(misfit!.text, new RegExp(`${info[key as "dtype"]} on prefill, ${value} on decode`));
    });
  }
});
