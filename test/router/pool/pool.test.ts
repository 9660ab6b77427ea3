import assert from "node:assert/strict";
import { create } from "@bufbuild/protobuf";
import { InfoSchema, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { systemClock } from "../../../services/common/clock.ts";
import { createMetrics } from "../../../services/common/metrics.ts";
import { pairable, pairFault } from "../../../services/router/pool/compat.ts";
import { candidateOf } from "../../../services/router/placement/candidate.ts";
import { createPool } from "../../../services/router/pool/pool.ts";
import type { Pool } from "../../../services/router/pool/pool.ts";
import { silentLog } from "../../support/log-sink.ts";
import { manualClock } from "../../support/manual-clock.ts";
import { freePort } from "../../support/waits.ts";
import { startDecode, startPrefill } from "../support/fake-instance.ts";
import { memberOf, untilCondition, untilPool } from "../support/pool-waits.ts";

const start = (): Pool => createPool({ log: silentLog, clock: systemClock });

describe("the pool", () => {
  it("gives an instance legs once it has told that it serves, and says what it is told", async () => {
    await using prefill = await startPrefill({ maxModelLen: 4096 });
    await using decode = await startDecode({ maxModelLen: 2048 });
    await using pool = start();
    pool.update([prefill.info, decode.info]);
    assert.equal(memberOf(pool, "d1")!.eligible, false);
    assert.match(memberOf(pool, "d1")!.reason, /not told/);
    await untilCondition(pool, "d1", "serving");
    await untilCondition(pool, "p1", "serving");
    assert.deepEqual([...pool.snapshot.models], [["tiny", { maxModelLen: 2048 }]]);
    assert.equal(memberOf(pool, "d1")!.load!.freeSlots, 64);
    assert.equal(memberOf(pool, "d1")!.reason, "");
  });

  for (const [state, condition] of [
    [State.STARTING, "starting"],
    [State.DRAINING, "draining"],
    [State.STOPPED, "stopped"],
  ] as const) {
    it(`takes an instance out that tells that it is ${condition}, and back when it serves`, async () => {
      await using decode = await startDecode();
      await using pool = start();
      pool.update([decode.info]);
      await untilCondition(pool, "d1", "serving");
      decode.load({ state, reason: "for a while" });
      await untilCondition(pool, "d1", condition);
      assert.equal(memberOf(pool, "d1")!.eligible, false);
      assert.equal(memberOf(pool, "d1")!.reason, "for a while");
      decode.load({ state: State.SERVING, reason: "" });
      await untilCondition(pool, "d1", "serving");
    });
  }

  it("takes an instance out at once whose connection breaks", async () => {
    const decode = await startDecode();
    await using pool = start();
    pool.update([decode.info]);
    await untilCondition(pool, "d1", "serving");
    await decode[Symbol.asyncDispose]();
    await untilCondition(pool, "d1", "unreachable");
  });

  it("takes an instance for silent whose heartbeat stays away for 2 s, and back with the next one", async () => {
    const clock = manualClock();
    await using decode = await startDecode();
    await using pool = createPool({ log: silentLog, clock });
    pool.update([decode.info]);
    await untilCondition(pool, "d1", "serving");
    clock.advance(1_900);
    assert.equal(memberOf(pool, "d1")!.condition, "serving");
    clock.advance(500);
    assert.equal(memberOf(pool, "d1")!.condition, "silent");
    assert.match(memberOf(pool, "d1")!.reason, /2 s/);
    // It calls again, and hears.
    const back = untilCondition(pool, "d1", "serving");
    const timer = setInterval(() => clock.advance(100), 5);
    await back.finally(() => clearInterval(timer));
  });

  it("calls again an instance that was not there yet", async () => {
    await using pool = start();
    const port = await freePort();
    pool.update([create(InfoSchema, { instanceId: "d9", role: 2, model: "tiny", grpcAddress: `127.0.0.1:${port}` })]);
    await untilPool(pool, "a refused connection", () => /reached/.test(memberOf(pool, "d9")!.reason));
  });

  it("takes new facts of an instance without losing its load", async () => {
    await using decode = await startDecode({ kvAddress: "127.0.0.1:1" });
    await using pool = start();
    pool.update([decode.info]);
    await untilCondition(pool, "d1", "serving");
    pool.update([create(InfoSchema, { ...decode.info, kvAddress: "127.0.0.1:2" })]);
    assert.equal(memberOf(pool, "d1")!.info.kvAddress, "127.0.0.1:2");
    assert.equal(memberOf(pool, "d1")!.eligible, true);
  });

  it("believes an instance before its registry in where its engine takes KV", async () => {
    await using decode = await startDecode();
    await using pool = start();
    pool.update([decode.info]);
    await untilCondition(pool, "d1", "serving");
    assert.equal(memberOf(pool, "d1")!.info.kvAddress, decode.info.kvAddress);
    decode.load({ kvAddress: "127.0.0.1:9" });
    await untilPool(pool, "its new address", () => memberOf(pool, "d1")!.info.kvAddress === "127.0.0.1:9");
    pool.update([decode.info]);
    assert.equal(memberOf(pool, "d1")!.info.kvAddress, "127.0.0.1:9");
  });

  it("keeps an instance that left until its last leg has ended, and gives it no new one", async () => {
    await using decode = await startDecode();
    await using pool = start();
    pool.update([decode.info]);
    await untilCondition(pool, "d1", "serving");
    const member = memberOf(pool, "d1")!;
    pool.legStarted(member);
    pool.update([]);
    assert.equal(memberOf(pool, "d1")!.condition, "left");
    assert.equal(pool.snapshot.models.size, 0);
    pool.legEnded(member, "good");
    assert.equal(memberOf(pool, "d1"), undefined);
  });

  it("drains by its own flag at once, and by the instance's word after that", async () => {
    await using decode = await startDecode();
    await using pool = start();
    pool.update([decode.info]);
    await untilCondition(pool, "d1", "serving");
    const drained = pool.drain("d1", false, "upgrade");
    assert.equal(memberOf(pool, "d1")!.condition, "draining");
    assert.equal(await drained, 7);
    assert.deepEqual(decode.drains, ["upgrade"]);
    await untilPool(pool, "the instance's own word", () => memberOf(pool, "d1")!.load!.state === State.DRAINING);
    // Somebody else takes it back: this router need not be asked.
    decode.load({ state: State.SERVING });
    await untilCondition(pool, "d1", "serving");
  });

  it("gives no leg to an instance that could not be told to drain", async () => {
    const decode = await startDecode();
    await using pool = start();
    pool.update([decode.info]);
    await untilCondition(pool, "d1", "serving");
    await decode[Symbol.asyncDispose]();
    await assert.rejects(pool.drain("d1", false), { code: "instance_unavailable" });
    assert.equal(memberOf(pool, "d1")!.condition, "draining");
    await assert.rejects(pool.drain("d2", false), { code: "not_found" });
  });

  it("takes an instance out on which leg after leg fails, until a canary comes through", async () => {
    const clock = manualClock();
    await using prefill = await startPrefill();
    await using decode = await startDecode();
    await using pool = createPool({ log: silentLog, clock, breaker: { failureLimit: 5, canaryEveryMs: 500 } });
    pool.update([prefill.info, decode.info]);
    await untilCondition(pool, "p1", "serving");
    await untilCondition(pool, "d1", "serving");
    const member = memberOf(pool, "d1")!;
    for (let count = 0; count < 5; count += 1) {
      assert.equal(memberOf(pool, "d1")!.condition, "serving");
      pool.legStarted(member);
      pool.legEnded(member, "bad");
    }
    assert.equal(memberOf(pool, "d1")!.condition, "failing");
    assert.equal(pool.ailing, true);
    // Neither time nor its own word brings it back.
    clock.advance(1_900);
    const loaded = untilPool(pool, "its next load", () => memberOf(pool, "d1")!.load!.running === 1);
    decode.load({ running: 1 });
    await loaded;
    assert.equal(memberOf(pool, "d1")!.condition, "failing");
    const [probe, ...others] = pool.takeProbes();
    assert.deepEqual([probe!.prefill.info.instanceId, probe!.decode.info.instanceId, others.length], ["p1", "d1", 0]);
    assert.deepEqual(pool.takeProbes(), [], "not twice within the pause");
    pool.canaryCame(probe!);
    assert.equal(memberOf(pool, "d1")!.condition, "serving");
    assert.equal(pool.ailing, false);
    pool.legStarted(member);
    pool.legEnded(member, "bad");
    assert.equal(memberOf(pool, "d1")!.condition, "failing", "it is on probation");
  });

  it("brings the figures for policies up to this moment", async () => {
    await using prefill = await startPrefill();
    await using decode = await startDecode();
    await using pool = start();
    pool.update([prefill.info, decode.info]);
    for (const [id, instance] of [
      ["p1", prefill],
      ["d1", decode],
    ] as const) {
      await untilCondition(pool, id, "serving");
      const loaded = untilPool(pool, "the load", () => memberOf(pool, id)!.load!.running === 3);
      instance.load({ running: 3, reserved: 1, freeSlots: 4, queuedTokens: 100 });
      await loaded;
      const member = memberOf(pool, id)!;
      pool.legStarted(member, 50);
      pool.legStarted(member, 7);
      // Prompts that wait for their prefill are no work of a decode instance.
      const queuedTokens = id === "p1" ? 157 : 0;
      assert.deepEqual(candidateOf(memberOf(pool, id)!), {
        instanceId: id,
        legs: 2,
        queuedTokens,
        running: 6,
        freeSlots: 2,
      });
      pool.legEnded(member, "good");
      assert.equal(candidateOf(memberOf(pool, id)!).freeSlots, 3);
    }
  });

  it("counts instances by role and condition, and knows no more than its limit", async () => {
    await using decode = await startDecode();
    const metrics = createMetrics();
    await using pool = createPool({ log: silentLog, clock: systemClock, metrics, limit: 1 });
    pool.update([decode.info, create(InfoSchema, { ...decode.info, instanceId: "d2" })]);
    await untilCondition(pool, "d1", "serving");
    assert.equal(pool.snapshot.decode.length, 1);
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
  it("fits where all facts agree, or one side doesn't say", () => {
    assert.equal(pairable(info, info), true);
    assert.equal(
      pairable(info, create(InfoSchema, { ...info, dtype: "", blockSize: 0, tpSize: 0, engineVersion: "" })),
      true,
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
    it(`doesn't fit where ${key} differs, and says so`, () => {
      const fault = pairFault(info, create(InfoSchema, { ...info, [key]: value }));
      assert.match(fault!, new RegExp(`${info[key as "dtype"]} on prefill, ${value} on decode`));
    });
  }
});
