// More requests than slots, for a while and for good, on a clock that the test moves.
import assert from "node:assert/strict";
import { setMaxListeners } from "node:events";
import { Deadlines } from "../../../services/common/deadlines.ts";
import type { ServiceError } from "../../../services/common/errors.ts";
import { createAdmission, type Admission, type Refusal } from "../../../services/router/admission/admission.ts";
import { createMetrics } from "../../../services/common/metrics.ts";
import { LagLimit } from "../../../services/router/admission/lag-limit.ts";
import { calm, type Overload, watchOverload } from "../../../services/router/admission/overload.ts";
import { FairQueue, type Waiter } from "../../../services/router/admission/queue.ts";
import { manualClock, type ManualClock } from "../../support/manual-clock.ts";

const SLOTS = 10;
const never = new AbortController().signal;
setMaxListeners(0, never);

/** What became of one request. */
interface Fate {
  readonly atMs: number;
  readonly tenant: string;
  waitedMs?: number;
  error?: ServiceError;
}

interface Lab {
  readonly clock: ManualClock;
  readonly admission: Admission;
  readonly overload: Overload;
  readonly fates: Fate[];
  readonly refused: Refusal[];
  /** Requests arrive for so long, so many times as fast as slots of `runMs` become free. */
  arrive(forMs: number, load: number, o?: { tenant?: string; priority?: number }): Promise<void>;
}

function lab({ targetMs = 1_000, runMs = 1_000 } = {}): Lab {
  const clock = manualClock(0);
  const overload: Overload = { ...calm() };
  const refused: Refusal[] = [];
  const fates: Fate[] = [];
  const admission = createAdmission({
    capacity: () => SLOTS,
    queue: { current: { limit: 1_000, timeoutMs: 30_000, targetMs } },
    onRefused: (because) => refused.push(because),
    overload,
    clock,
    deadlines: new Deadlines(clock),
  });
  const one = (o: { tenant?: string; priority?: number }): void => {
    const fate: Fate = { atMs: clock.nowMs(), tenant: o.tenant ?? "" };
    fates.push(fate);
    admission.acquire(never, o).then(
      ({ waitedMs, release }) => {
        fate.waitedMs = waitedMs;
        clock.setTimer(runMs, release);
      },
      (error: ServiceError) => (fate.error = error),
    );
  };
  return {
    clock,
    admission,
    overload,
    fates,
    refused,
    async arrive(forMs, load, o = {}) {
      const everyMs = runMs / SLOTS / load;
      const untilMs = clock.nowMs() + forMs;
      for (let nextMs = clock.nowMs(); nextMs < untilMs; nextMs += everyMs) {
        if (nextMs > clock.nowMs()) await clock.pass(nextMs - clock.nowMs());
        one(o);
      }
    },
  };
}

/** Of those that arrived from `fromMs` on. */
function outcome(fates: readonly Fate[], fromMs: number) {
  const those = fates.filter(({ atMs }) => atMs >= fromMs);
  const waits = those.flatMap(({ waitedMs }) => waitedMs ?? []).sort((a, b) => a - b);
  return {
    admitted: waits.length,
    refused: those.filter(({ error }) => error !== undefined).length,
    medianMs: waits[Math.floor(waits.length / 2)] ?? 0,
    longestMs: waits.at(-1) ?? 0,
  };
}

describe("a queue under twice the load that slots can serve", () => {
  it("admits a full load of requests at once, and refuses the others after the target", async () => {
    const { arrive, fates, clock, refused, overload } = lab();
    await arrive(30_000, 2);
    const { admitted, refused: count, medianMs, longestMs } = outcome(fates, 10_000);
    assert.ok(admitted >= 190, `${admitted} of 400 were admitted in 20 s, by 10 slots of 1 s`);
    assert.ok(count >= 150, `${count} were refused`);
    assert.ok(medianMs <= 100, `half of them waited ${medianMs} ms`);
    assert.ok(longestMs <= 1_200, `one waited ${longestMs} ms`);
    assert.deepEqual([new Set(refused), overload.queueStands], [new Set(["queue_stands"]), true]);
    const error = fates.find((fate) => fate.error !== undefined)!.error!;
    assert.deepEqual([error.code, error.retryAfterS! >= 1 && error.retryAfterS! <= 10], ["queue_full", true]);
    assert.match(
      error.message,
      /^Too many requests: more arrive than the instances can serve\. The request waited \d+ ms/,
    );
    // The load is gone: what still waits is served, and the next ones too.
    await clock.pass(10_000);
    await arrive(1_000, 0.5);
    await clock.pass(0);
    assert.equal(overload.queueStands, false);
    assert.equal(outcome(fates, 40_000).longestMs, 0);
  });

  it("refuses nothing while slots absorb a burst, and serves it in order", async () => {
    const { arrive, fates, clock, refused } = lab();
    await arrive(4_000, 2);
    await clock.pass(20_000);
    assert.deepEqual([outcome(fates, 0).admitted, refused], [80, []]);
    const waits = fates.map(({ waitedMs }) => waitedMs!);
    assert.deepEqual(
      waits,
      [...waits].sort((a, b) => a - b),
    );
  });

  it("lets requests that run long wait for a quarter of that", async () => {
    const long = lab({ runMs: 20_000 });
    await long.arrive(200_000, 1.2);
    const { longestMs } = outcome(long.fates, 0);
    assert.ok(longestMs > 4_000 && longestMs < 12_000, `one waited ${longestMs} ms`);
  });

  it("waits as long as queue.timeout_ms allows if the target is 0", async () => {
    const { arrive, fates, refused } = lab({ targetMs: 0 });
    await arrive(20_000, 2);
    assert.deepEqual(refused, []);
    assert.ok(outcome(fates, 0).longestMs > 8_000);
  });

  it("is fair: a tenant that takes its half waits for nobody, and a better priority for less", async () => {
    const { arrive, fates } = lab();
    await Promise.all([
      arrive(30_000, 4, { tenant: "greedy" }),
      arrive(30_000, 0.4, { tenant: "modest" }),
      arrive(30_000, 0.2, { tenant: "first", priority: -1 }),
    ]);
    for (const tenant of ["modest", "first"]) {
      const own = outcome(
        fates.filter((fate) => fate.tenant === tenant),
        8_000,
      );
      assert.ok(own.refused <= own.admitted / 20, `${tenant}: ${own.refused} of ${own.admitted} were refused`);
    }
    assert.ok(
      outcome(
        fates.filter(({ tenant }) => tenant === "greedy"),
        8_000,
      ).refused > 300,
    );
  });
});

describe("the newest request first", () => {
  it("takes the turn of its own tenant and priority, and no other's", () => {
    const queue = new FairQueue<Waiter & { readonly name: string }>();
    const push = (name: string, tenant: string, priority = 0): void =>
      queue.push({ name, model: "m", tenant, priority, legs: 1 });
    for (const name of ["a1", "a2", "a3"]) push(name, "a");
    for (const name of ["b1", "b2"]) push(name, "b");
    push("c1", "c", -1);
    push("a4", "a", 5);
    const order: string[] = [];
    for (;;) {
      queue.preferNewest("m");
      const first = queue.first("m");
      if (first === undefined) break;
      order.push(first.name);
      queue.remove(first, true);
    }
    assert.deepEqual(order, ["c1", "a3", "b2", "a2", "b1", "a1", "a4"]);
    assert.deepEqual([queue.size, queue.models(), queue.legsOf("m")], [0, [], 0]);
  });
});

describe("a router whose event loop runs late", () => {
  it("admits fewer legs until the delay is small, and then more again", () => {
    const limit = new LagLimit();
    let nowMs = 0;
    const at = (delayMs: number, running: number): number => limit.at(delayMs, running, (nowMs += 250));
    assert.equal(at(20, 100), Infinity);
    assert.equal(at(500, 100), 95);
    assert.equal(at(500, 90), 85);
    assert.equal(at(300, 85), 85, "it holds between the two marks");
    assert.equal(at(20, 85), 89);
    assert.equal(at(20, 60), 89, "a limit that binds nothing is not raised");
    assert.equal(at(20, 30), Infinity);
    for (let running = 100; running > 10; running -= 10) at(5_000, running);
    assert.equal(at(5_000, 0), 32, "and a router always serves some");
  });

  it("queues what is beyond, and refuses what waits too long", async () => {
    const { overload, admission, clock } = lab();
    Object.assign(overload, { loopDelayMs: 500 });
    const places = await Promise.all(Array.from({ length: 8 }, () => admission.acquire(never)));
    assert.deepEqual([admission.running, admission.waiting, places.length], [8, 0, 8]);
    const wide = createAdmission({
      capacity: () => 100,
      queue: { current: { limit: 100, timeoutMs: 30_000, targetMs: 1_000 } },
      overload,
      clock,
      deadlines: new Deadlines(clock),
    });
    for (let count = 0; count < 60; count++) void wide.acquire(never).catch(() => {});
    await clock.pass(1);
    assert.deepEqual([wide.running, wide.waiting], [32, 28]);
    Object.assign(overload, { loopDelayMs: 10 });
    for (let step = 0; step < 20; step++) {
      await clock.pass(250);
      wide.poke();
    }
    assert.equal(wide.waiting, 0);
  });
});

describe("a router that has more to do than it can", () => {
  it("sheds optional work for each cause, and reports which", async () => {
    const loop = { delayMs: 0 };
    const view = { doubtsItself: false, lastResortCount: 0 };
    const metrics = createMetrics();
    const overload = watchOverload({ loop, pool: { view }, metrics });
    const causes = async (): Promise<string> =>
      [...(await metrics.text()).matchAll(/tandem_overload\{because="(\w+)"\} 1/g)].map(([, name]) => name).join(" ");
    assert.deepEqual([overload.on, await causes()], [false, ""]);
    for (const [cause, change, undo] of [
      ["loop", () => (loop.delayMs = 101), () => (loop.delayMs = 100)],
      ["queue", () => (overload.queueStands = true), () => (overload.queueStands = false)],
      ["self_doubt", () => (view.doubtsItself = true), () => (view.doubtsItself = false)],
      ["last_resort", () => (view.lastResortCount = 1), () => (view.lastResortCount = 0)],
    ] as const) {
      change();
      assert.deepEqual([overload.on, await causes()], [true, cause]);
      undo();
      assert.equal(overload.on, false);
    }
  });
});
