import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type BookedTokens, DebtRecord } from "../../services/decode/debt-record.ts";
import { createDebtLedger, debtOf, restartReason } from "../../services/decode/kv-debt.ts";
import type { LiveEngine } from "../../services/engine/engine.ts";
import { NO_GAUGES } from "../../services/engine/metrics-text.ts";
import type { InstanceParts, RunningInstance } from "../../services/instance/instance.ts";
import { InstanceStatus } from "../../services/instance/status.ts";
import { leg, prefillLeg, reserved, settled, simDecode, simPrefill, successorOf } from "../instance/legs.ts";
import { silentLog } from "../support/log-sink.ts";
import { manualClock } from "../support/manual-clock.ts";
import { eventually } from "../support/waits.ts";

const FACTS = { maxModelLen: 100, kvCacheTokens: 1_000, kvCacheBytes: 64_000 };
const LIMIT = { limitRatio: 0.05, idleMs: 0 };

describe("KV debt", () => {
  for (const [tokens, facts, bytes, ratio] of [
    [0, FACTS, 0n, 0],
    [10, FACTS, 640n, 0.01],
    [2_000, FACTS, 128_000n, 1],
    // vLLM 0.23 reports no bytes: those of a model with 8 billion parameters.
    [10, { maxModelLen: 100, kvCacheTokens: 1_000 }, 1_310_720n, 0.01],
    // No size at all: the cache holds at least one longest request.
    [10, { maxModelLen: 100 }, 1_310_720n, 0.1],
  ] as const) {
    it(`of ${tokens} tokens is ${bytes} bytes, a share of ${ratio}, with ${Object.keys(facts).join(", ")} known`, () => {
      assert.deepEqual(debtOf(tokens, facts), { kvDebtBytes: bytes, kvDebtRatio: ratio });
    });
  }

  for (const [what, booked, o, wanted] of [
    ["nothing", { users: 0, probes: 0 }, { ...LIMIT, idleMs: 3_600_000 }, false],
    ["one prompt", { users: 30, probes: 0 }, LIMIT, false],
    ["exactly its share", { users: 50, probes: 0 }, LIMIT, false],
    ["more than its share", { users: 51, probes: 0 }, LIMIT, true],
    [
      "one prompt, on an instance that was idle for 59 s",
      { users: 30, probes: 0 },
      { ...LIMIT, idleMs: 59_999 },
      false,
    ],
    [
      "one prompt, on an instance that was idle for a minute",
      { users: 30, probes: 0 },
      { ...LIMIT, idleMs: 60_000 },
      true,
    ],
    ["prompts of probes alone", { users: 0, probes: 900 }, { ...LIMIT, idleMs: 59_999 }, false],
    [
      "prompts of probes alone, on an instance that was idle for a minute",
      { users: 0, probes: 900 },
      { ...LIMIT, idleMs: 60_000 },
      true,
    ],
    ["one prompt beside many of probes", { users: 1, probes: 900 }, LIMIT, false],
  ] as readonly (readonly [string, BookedTokens, typeof LIMIT, boolean])[]) {
    it(`${wanted ? "asks for a restart" : "asks for nothing"} when it is ${what}`, () => {
      assert.equal(restartReason(booked, FACTS, o) !== undefined, wanted);
    });
  }
});

describe("the ledger of KV debt", () => {
  function lab(record?: DebtRecord) {
    const clock = manualClock();
    const status = new InstanceStatus(8);
    const engine = { facts: FACTS } as unknown as LiveEngine;
    const wanted: (string | undefined)[] = [];
    const restarts = { want: (_: LiveEngine, reason: string | undefined) => void wanted.push(reason) };
    const parts = { clock, status, restarts, supervisor: { live: engine }, log: silentLog };
    const ledger = createDebtLedger(parts as unknown as InstanceParts, 0.05, record);
    return { clock, status, engine, wanted, ledger };
  }

  it("bounds an entry by the longest prompt", () => {
    const { status, engine, ledger } = lab();
    ledger.book(engine, 1_000_000, false, {});
    assert.deepEqual([status.load().kvDebtBytes, status.load().kvDebtRatio], [6_400n, 0.1]);
    assert.match(status.report().load!, /^8 of 8 slots free, KV debt 0\.0 MiB \(10\.0 %\)$/);
  });

  it("asks for a restart after an idle minute, and no longer once the instance has a leg", () => {
    const { clock, status, engine, wanted, ledger } = lab();
    ledger.book(engine, 10, false, {});
    assert.deepEqual(wanted, [undefined]);
    clock.advance(59_999);
    status.count({ running: 1 });
    status.count({ running: -1 });
    clock.advance(59_999);
    assert.equal(wanted.at(-1), undefined);
    clock.advance(1);
    assert.match(wanted.at(-1)!, /^1\.0 % of the engine's KV cache .* idle$/);
    status.count({ reserved: 1 });
    assert.equal(wanted.at(-1), undefined);
    assert.equal(clock.pending, 0);
  });

  it("asks for none while probes add to it, whose next one would add as much after a restart", () => {
    const { clock, engine, wanted, ledger } = lab();
    for (let count = 0; count < 10; count++) {
      ledger.book(engine, 90, true, {});
      clock.advance(59_999);
    }
    assert.deepEqual(wanted, []);
    clock.advance(1);
    assert.match(wanted.at(-1)!, /idle$/);
  });

  it("takes over what an earlier process recorded of this engine, and not of another one", () => {
    const folder = mkdtempSync(join(tmpdir(), "tandem-debt-"));
    const record = (name: string, counted: number, clock = manualClock()): DebtRecord => {
      const gauges = { ...NO_GAUGES, promptTokens: counted, generationTokens: counted };
      return new DebtRecord({ file: join(folder, "debts", name), gauges: () => gauges, clock, log: silentLog });
    };
    const killed = (name: string, act: (one: DebtRecord) => void): void => {
      const clock = manualClock();
      act(record(name, 50, clock));
      clock.advance(1_000);
    };
    const owes = (one: DebtRecord): void => {
      one.booked({ users: 7, probes: 2 });
      one.open(30);
      one.open(-10);
    };
    killed("same", owes);
    const { status, wanted } = lab(record("same", 61));
    status.set({ engine: { reason: "" } });
    assert.deepEqual([status.load().kvDebtBytes, wanted], [29n * 64n, []]);
    killed("other", owes);
    assert.equal(record("other", 40).takeLeft(), undefined);
    killed("settled", (one) => {
      one.open(30);
      one.open(-30);
    });
    assert.equal(record("settled", 61).takeLeft(), undefined);
    rmSync(folder, { recursive: true });
  });

  it("is cleared with the engine, and books nothing for one that is gone", () => {
    const { clock, status, engine, ledger } = lab();
    ledger.book(engine, 10, false, {});
    ledger.engineChanged();
    assert.deepEqual([status.load().kvDebtBytes, clock.pending], [0n, 0]);
    ledger.book({ facts: FACTS } as unknown as LiveEngine, 10, false, {});
    assert.equal(status.load().kvDebtBytes, 0n);
  });
});

describe("KV that can't be accounted for", () => {
  const nccl = { connector: "p2p-nccl" };
  const NOWHERE = { prefillKvAddress: "127.0.0.1:9" };

  it("is booked, its slot comes free, and the engine serves on and takes the debt with it when it goes", async () => {
    await using prefill = await simPrefill("p2p-zmq", nccl);
    await using decode = await simDecode("p2p-zmq", nccl);
    const lost = await reserved(decode, undefined, leg(), NOWHERE);
    lost.abandon();
    assert.equal(await lost.next(), undefined);
    await settled(decode);
    const { kvDebtBytes, kvDebtRatio, freeSlots, kvOrphans } = decode.instance.load();
    assert.ok(kvDebtBytes > 0n && kvDebtRatio > 0 && kvDebtRatio < 0.05);
    assert.deepEqual([freeSlots, kvOrphans], [decode.instance.info().slotLimit, 0]);
    const pair = leg();
    const next = await reserved(decode, prefill, pair);
    next.start((await prefillLeg(prefill, decode, pair)).ticket);
    assert.notEqual((await next.rest()).end, undefined);
    assert.equal(decode.instance.load().kvDebtBytes, kvDebtBytes);
    decode.engine.kill();
    await eventually("the debt is gone", () => decode.instance.load().kvDebtBytes === 0n);
  });

  it("is booked by the successor of a killed instance, if the engine is still the same", async () => {
    await using prefill = await simPrefill("p2p-zmq", nccl);
    await using decode = await simDecode("p2p-zmq", nccl);
    const pair = leg();
    const done = await reserved(decode, prefill, pair);
    done.start((await prefillLeg(prefill, decode, pair)).ticket);
    await done.rest();
    await settled(decode);
    const counted = (instance: RunningInstance): Promise<unknown> =>
      eventually("its engine has reported", () => instance.supervisor.gauges.generationTokens > 0);
    {
      await using afterNothing = await successorOf(decode, "p2p-zmq", nccl);
      await counted(afterNothing);
      assert.equal(afterNothing.load().kvDebtBytes, 0n);
    }
    // As it is when SIGKILL comes: reserved, and its KV may be on its way.
    const open = await reserved(decode, prefill, leg());
    {
      await using after = await successorOf(decode, "p2p-zmq", nccl);
      await eventually("it is booked", () => after.load().kvDebtBytes > 0n);
      // Whatever becomes of this one, the next knows as well.
      await using afterThat = await successorOf(decode, "p2p-zmq", nccl);
      await eventually("it is booked again", () => afterThat.load().kvDebtBytes > 0n);
    }
    open.abandon();
    assert.equal(await open.next(), undefined);
  });

  it("is booked when it may have been taken by an engine that then failed", async () => {
    await using prefill = await simPrefill("p2p-zmq", nccl);
    await using decode = await simDecode("p2p-zmq", nccl, { faults: ["error-event:after_tokens=0:count=1"] });
    const pair = leg();
    const call = await reserved(decode, prefill, pair);
    call.start((await prefillLeg(prefill, decode, pair)).ticket);
    await assert.rejects(call.next());
    await eventually("it is booked", () => decode.instance.load().kvDebtBytes > 0n);
    assert.equal(decode.instance.load().kvOrphans, 0);
    assert.equal(decode.instance.supervisor.restarts, 0);
  });

  it("is known not to exist when prefill's engine answered 500 and had computed nothing", async () => {
    await using prefill = await simPrefill("p2p-zmq", nccl);
    await using decode = await simDecode("p2p-zmq", nccl);
    for (const faults of [[], ["refuse:status=500:count=1"], []]) {
      for (const fault of faults) prefill.engine.setFault(fault);
      const pair = leg();
      const call = await reserved(decode, prefill, pair);
      const answer = prefillLeg(prefill, decode, pair);
      if (faults.length > 0) {
        await assert.rejects(answer);
        call.abandon();
        assert.equal(await call.next(), undefined);
      } else {
        call.start((await answer).ticket);
        assert.notEqual((await call.rest()).end, undefined);
      }
    }
    await settled(decode);
    assert.equal(decode.instance.load().kvDebtBytes, 0n);
  });

  it("is booked when another prefill instance answers at the address, whatever the clock of its host shows", async () => {
    await using decode = await simDecode("p2p-zmq", nccl);
    const realNow = Date.now;
    Date.now = () => realNow() - 60_000;
    await using successor = await simPrefill("p2p-zmq", nccl).finally(() => (Date.now = realNow));
    const call = await reserved(decode, successor, leg(), { prefillInstanceId: "prefill-that-was-there" });
    call.abandon();
    assert.equal(await call.next(), undefined);
    await eventually("it is booked", () => decode.instance.load().kvDebtBytes > 0n);
  });

  it("of a probe is booked, and asks for no restart", async () => {
    const clock = manualClock();
    await using decode = await simDecode("p2p-zmq", { ...nccl, "kv.debt_limit_ratio": 0 }, {}, clock);
    const call = await reserved(decode, undefined, leg(), { ...NOWHERE, probe: true });
    call.abandon();
    assert.equal(await call.next(), undefined);
    await eventually("it is booked", () => decode.instance.load().kvDebtBytes > 0n);
    assert.equal(decode.instance.load().restartWanted, "");
  });
});
