// Breakers at work, over real gRPC: users' legs open them, probes and nothing else close them.
import assert from "node:assert/strict";
import { Role, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { createMetrics } from "../../../services/common/metrics.ts";
import { BREAKER_LIMITS } from "../../../services/router/pool/breaker.ts";
import { fleetOf } from "../../../services/router/pool/fleet.ts";
import { Pairs } from "../../../services/router/pool/pairs.ts";
import { startProbes } from "../../../services/router/probe/schedule.ts";
import { manualClock, type ManualClock } from "../../support/manual-clock.ts";
import { eventually, untilQuiet, within } from "../../support/waits.ts";
import { deploy, untilNoLegs } from "../support/deployment.ts";
import { startDecode, startPrefill, twoTokens } from "../support/fake-instance.ts";
import type { DecodeLeg, PrefillLeg } from "../support/fake-instance.ts";
import { known, standingIn } from "../support/fleet.ts";
import type { FleetView, Pool, ProbeBooks } from "../../../services/router/pool/pool.ts";
import { instanceIn, seenIn, untilPool, untilStanding } from "../support/pool-waits.ts";

const done = (leg: PrefillLeg): void => leg.done();
const isProbe = (body: string): boolean => body.includes("logprobs");
/** Instances behave so to probes, and so to users. */
const toProbes =
  (probe: (leg: DecodeLeg) => void, user: (leg: DecodeLeg) => void) =>
  (leg: DecodeLeg): void =>
    isProbe(leg.reserve.body) ? probe(leg) : user(leg);
/** Resolves when its breaker is open, although it serves on as the last of its side. */
const untilLastResort = (pool: Pool, id: string): Promise<void> =>
  untilPool(pool, `${id} is a last resort`, ({ view }) => {
    const standing = seenIn(pool, id)!.standing;
    return (
      view.models.get("tiny")!.lastResorts.size > 0 && standing.kind === "serves" && standing.despite === "failing"
    );
  });
const BREAKER = { failureLimit: 2, probeEveryMs: 500 };

for (const connector of ["p2p-zmq", "nixl"]) {
  describe(`an instance that fails leg after leg (${connector})`, () => {
    const info = { connector };

    it("is a last resort after the limit, gets probes through both legs, and is sound when one succeeds", async () => {
      let broken = true;
      const probes: string[] = [];
      await using prefill = await startPrefill(info, (leg) => leg.done({ ticket: "{}" }));
      await using decode = await startDecode(
        info,
        toProbes(
          (leg) => {
            probes.push(leg.reserve.legId);
            if (broken) leg.fail("engine_failed");
            else {
              leg.accept();
              void leg.started.promise.then(() => leg.end({}, "{}"));
            }
          },
          (leg) => (broken ? leg.fail("engine_failed") : twoTokens(leg)),
        ),
      );
      const poolClock = manualClock();
      await using tandem = await deploy([prefill, decode], {
        limits: { retryLimit: 0 },
        breaker: BREAKER,
        poolClock,
        queueTimeoutMs: 1,
      });
      for (let count = 0; count < 2; count += 1) await assert.rejects(tandem.start().ending, { code: "engine_failed" });
      await untilLastResort(tandem.pool, "d1");
      const last = tandem.start();
      await assert.rejects(last.ending, { code: "engine_failed" });
      assert.deepEqual(last.receipt.fallbacks, ["last_resort"]);
      assert.match(await tandem.metrics.text(), /tandem_breakers_open\{of="decode"\} 1/);
      poolClock.advance(500);
      await untilPool(tandem.pool, "a failed probe", ({ probes }) => probes.dueMs === poolClock.nowMs() + 1_000);
      broken = false;
      poolClock.advance(1_000);
      await untilPool(tandem.pool, "a probe that succeeds", ({ probes }) => probes.dueMs === Infinity);
      const sound = tandem.start();
      await sound.ending;
      assert.deepEqual(sound.receipt.fallbacks, []);
      await untilNoLegs(tandem);
      const paired = prefill.legs.all
        .filter(({ request }) => isProbe(request.body))
        .map(({ request }) => request.legId);
      assert.ok(paired.length > 0 && probes.includes(paired.at(-1)!), "a probe is a real pair of legs");
      assert.equal(new Set(probes).size, probes.length);
      assert.match(await tandem.metrics.text(), /tandem_probes_total\{outcome="succeeded"\} 1/);
      assert.match(await tandem.metrics.text(), /tandem_breakers_open\{of="decode"\} 0/);
    });
  });
}

describe("an instance that hangs", () => {
  it("gets a bounded number of probes, and takes none from the others", async () => {
    let broken = true;
    await using hung = await startPrefill({ instanceId: "p1" });
    await using prefill = await startPrefill({ instanceId: "p2" }, (leg) =>
      broken ? leg.fail("engine_failed") : leg.done(),
    );
    await using decode = await startDecode({}, (leg) => {
      leg.accept();
      void leg.started.promise.then(() => leg.end({}, "{}"));
      // What was abandoned after the hung one is never settled.
      if (leg.reserve.prefillGrpcAddress === prefill.info.grpcAddress)
        void leg.abandoned.promise.then(() => leg.close());
    });
    const poolClock = manualClock();
    await using tandem = await deploy([hung, prefill, decode], {
      limits: { retryLimit: 0, prefillTimeoutMs: 50 },
      breaker: { failureLimit: 1, probeEveryMs: 20 },
      poolClock,
    });
    const probed = async (): Promise<number> => {
      poolClock.advance(1_000);
      for (const one of [hung, prefill, decode]) one.load({}); // Or they fall silent on this clock.
      await untilQuiet();
      return prefill.legs.all.filter(({ request }) => isProbe(request.body)).length;
    };
    for (let count = 0; count < 2; count += 1) await tandem.start().ending.catch(() => {});
    // The hung one: it and its only partner, for whose fault it is that prefill pushes in vain can't be told.
    await untilStanding(tandem.pool, "p2", "failing");
    await eventually("twelve probes failed", async () => (await probed()) >= 12);
    broken = false;
    await eventually("a probe succeeds", async () => (await probed(), standingIn(tandem.pool.view, "p2") === "serves"));
    const probes = hung.legs.all.filter(({ request }) => isProbe(request.body)).length;
    assert.ok(probes >= 1 && probes <= 8, `${probes} probes`);
  });
});

describe("an instance that fails at once", () => {
  it("does not attract the requests of one that works", async () => {
    await using prefill = await startPrefill({}, done);
    await using bad = await startDecode({ instanceId: "d1" }, (leg) => leg.fail("engine_failed"));
    // Busy all the time: by load alone the other, always idle, would get every leg.
    await using good = await startDecode({ instanceId: "d2" }, twoTokens);
    good.load({ running: 10 });
    await using tandem = await deploy([prefill, bad, good], {
      limits: { retryLimit: 3 },
      constants: { retriesPerS: 100 },
      breaker: { failureLimit: 3, probeEveryMs: 60_000 },
    });
    for (let count = 0; count < 50; count += 1) await tandem.start().ending;
    assert.ok(bad.legs.all.length <= 3, `${bad.legs.all.length} legs went to it`);
  });
});

describe("an instance that stalls", () => {
  it("is out after one leg, so that the next clients do not wait for it", async () => {
    await using prefill = await startPrefill({}, done);
    await using mute = await startDecode({ instanceId: "d1" });
    await using good = await startDecode({ instanceId: "d2" }, twoTokens);
    await using tandem = await deploy([prefill, mute, good], {
      limits: { stallMs: 200 },
      constants: { reserveTimeoutMs: 100, retriesPerS: 100 },
    });
    const first = Array.from({ length: 8 }, () => tandem.start());
    await within(Promise.all(first.map(({ ending }) => ending)), "eight answers");
    assert.ok(mute.legs.all.length > 0);
    const before = mute.legs.all.length;
    await Promise.all(Array.from({ length: 8 }, () => tandem.start().ending));
    assert.equal(mute.legs.all.length, before);
  });

  it("in a transfer takes out the pair and not the instances, and the request goes to another pair", async () => {
    await using prefill = await startPrefill({}, done);
    await using other = await startPrefill({ instanceId: "p2" }, done);
    // KV of p1 never arrives at d1: the network between them is cut.
    await using decode = await startDecode({}, (leg) => {
      if (leg.reserve.prefillGrpcAddress === prefill.info.grpcAddress) leg.accept();
      else twoTokens(leg);
    });
    await using tandem = await deploy([prefill, other, decode], {
      limits: { transferTimeoutMs: 100, stallMs: 100, retryLimit: 2 },
    });
    // Round by round, until p1 was picked once.
    let receipt;
    for (let count = 0; count < 2; count += 1) {
      const started = tandem.start();
      // The decode instance stood still with it, and there is no other: the first failure is told.
      await started.ending.catch(() => {});
      if (started.receipt.legs[0]!.prefillInstanceId === "p1") receipt = started.receipt;
    }
    assert.match(
      receipt!.legs[0]!.error,
      /leg_stalled: No token came after prefill for 100 ms \(reserve \d+ ms, prefill \d+ ms, transfer \d+ ms\)/,
    );
    assert.match(
      tandem.pool.view.pairFault(instanceIn(tandem.pool, "p1")!, instanceIn(tandem.pool, "d1")!)!,
      /Legs failed/,
    );
    await untilPool(tandem.pool, "both to serve", ({ view }) =>
      [...view.prefill, ...view.decode].every(({ standing }) => standing.kind === "serves"),
    );
    const after = tandem.start();
    await after.ending;
    assert.equal(after.receipt.legs[0]!.prefillInstanceId, "p2");
    assert.deepEqual(after.receipt.fallbacks, ["pair_avoided"]);
  });
});

/** One prefill and one decode instance that fail every leg until they are repaired, and whose breakers are open. */
async function failedFleet(connector: string) {
  let broken = true;
  const prefill = await startPrefill({ connector }, (leg) => (broken ? leg.fail("engine_failed") : leg.done()));
  const decode = await startDecode({ connector }, (leg) => {
    if (broken) return leg.fail("engine_failed");
    leg.accept();
    void leg.started.promise.then(() => leg.end({}, "{}"));
  });
  const poolClock = manualClock();
  const tandem = await deploy([prefill, decode], { limits: { retryLimit: 0 }, breaker: BREAKER, poolClock });
  for (let count = 0; count < 2; count += 1) await assert.rejects(tandem.start().ending, { code: "engine_failed" });
  await untilLastResort(tandem.pool, "d1");
  return {
    tandem,
    prefill,
    poolClock,
    repair: () => void (broken = false),
    async [Symbol.asyncDispose]() {
      for (const one of [tandem, decode, prefill]) await one[Symbol.asyncDispose]();
    },
  };
}

describe("a fleet in which every instance failed", () => {
  it("serves again within two seconds of the repair", async () => {
    await using f = await failedFleet("p2p-zmq");
    const { tandem, poolClock } = f;
    f.repair();
    poolClock.advance(1_000);
    await untilPool(tandem.pool, "the service", ({ probes }) => probes.dueMs === Infinity);
    await tandem.start({ stream: false }).ending;
  });
});

/** A prefill instance, and decode instances whose probes all fail. */
function decodesThatFail(clock: ManualClock, ids: readonly string[]): { view: FleetView; books: ProbeBooks } {
  const decodes = ids.map((id) => known(Role.DECODE, { id, failing: true }));
  const view = fleetOf([known(Role.PREFILL, { id: "p1" }), ...decodes], new Pairs(BREAKER_LIMITS), () => false);
  const books: ProbeBooks = {
    get dueMs() {
      return Math.min(...decodes.map(({ breaker }) => breaker.dueMs));
    },
    due: (nowMs) => ({
      instances: decodes
        .filter(({ breaker }) => breaker.dueMs <= nowMs)
        .sort((a, b) => a.breaker.dueMs - b.breaker.dueMs),
      pairs: [],
    }),
    isInPair: () => false,
    sending: (_, decode) => decodes.find((one) => one === decode)!.breaker.probing(clock.nowMs()),
    succeeded: () => {},
    failed: (_, decode, failure, text) =>
      decodes.find((one) => one === decode)!.breaker.probeFailed(failure, text, clock.nowMs()),
  };
  return { view, books };
}

describe("probes of a router that is overloaded", () => {
  it("go on, one a second, to each instance in turn", async () => {
    const clock = manualClock(0);
    const ids = ["d1", "d2", "d3"];
    const { view, books } = decodesThatFail(clock, ids);
    const sent: string[] = [];
    const overload = { on: false };
    using _probes = startProbes({
      pool: { view, probes: books, onChange: () => () => {} },
      prober: {
        async probe(_prefill, decode) {
          sent.push(decode.instanceId);
          return { kind: "failed", failure: "refused", text: "It failed." };
        },
        unsettled: () => 0,
      },
      clock,
      metrics: createMetrics(),
      overload,
    });
    const sentIn = async (ms: number): Promise<string[]> => {
      for (let step = 0; step < ms; step += 50) await clock.pass(50);
      return sent.splice(0);
    };
    assert.ok((await sentIn(10_000)).length >= 25, "each gets one a second");
    overload.on = true;
    const shed = await sentIn(12_000);
    assert.ok(shed.length >= 10 && shed.length <= 13, `${shed.length} probes`);
    for (const id of ids) assert.ok(shed.filter((one) => one === id).length >= 3, `${id}: ${shed.join(" ")}`);
  });
});

describe("probes of an instance that hangs", () => {
  it("stay in it, after the first, for longer than an engine may stall, or its instance would never find out", async () => {
    const clock = manualClock();
    const { view, books } = decodesThatFail(clock, ["d1"]);
    const timeouts: number[] = [];
    let failure: "late" | undefined = "late";
    using _probes = startProbes({
      pool: { view, probes: books, onChange: () => () => {} },
      prober: {
        async probe(_prefill, _decode, { timeoutMs }) {
          timeouts.push(timeoutMs);
          return failure === undefined ? { kind: "unjudged", ms: 1 } : { kind: "failed", failure, text: "It failed." };
        },
        unsettled: () => 0,
      },
      clock,
      metrics: createMetrics(),
    });
    const next = async (): Promise<number> => {
      timeouts.length = 0;
      while (timeouts.length === 0) await clock.pass(100);
      return timeouts[0]!;
    };
    assert.equal(await next(), 2_000);
    assert.ok((await next()) > 15_000, "legs.stall_ms");
    failure = undefined;
    assert.ok((await next()) > 15_000);
    failure = "late";
    assert.equal(await next(), 2_000, "it has answered");
  });
});

describe("an instance whose probes were refused because of its partner", () => {
  it("gets the next one when the partner is back, and not when its pause is over", async () => {
    await using f = await failedFleet("p2p-nccl");
    const { tandem, prefill, poolClock } = f;
    const pauseMs = (): number => tandem.pool.probes.dueMs - poolClock.nowMs();
    for (const nextMs of [1_000, 2_000, 4_000]) {
      poolClock.advance(Math.max(500, pauseMs()));
      await untilPool(tandem.pool, `a pause of ${nextMs} ms`, () => pauseMs() === nextMs);
    }
    f.repair();
    prefill.load({ state: State.STARTING });
    await untilStanding(tandem.pool, "p1", "starting");
    prefill.load({ state: State.SERVING });
    await untilPool(tandem.pool, "a probe that is due", () => pauseMs() <= 0);
  });
});
