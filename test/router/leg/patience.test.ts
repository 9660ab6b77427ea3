// What is usual for an instance, and when a leg on it is late.
import assert from "node:assert/strict";
import { Deadlines } from "../../../services/common/deadlines.ts";
import { streamBoundMs, transferBoundMs, waitFor, type Wait } from "../../../services/router/leg/bounds.ts";
import type { LegContext } from "../../../services/router/leg/context.ts";
import { bucketOf, Latencies, Paces } from "../../../services/router/leg/paces.ts";
import { traitsOf } from "../../../services/kv/index.ts";
import { outrunVerdict } from "../../../services/router/leg/verdict.ts";
import type { Instance } from "../../../services/router/pool/pool.ts";
import { manualClock } from "../../support/manual-clock.ts";
import { LIMITS } from "../support/deployment.ts";
import { type Lab, legLab, type LegInit, streaming } from "../support/leg-lab.ts";

const clock = manualClock();

function context(o: { loopMs?: number; limits?: Partial<typeof LIMITS> } = {}): LegContext {
  return {
    clock,
    deadlines: new Deadlines(clock),
    limits: { current: { ...LIMITS, transferTimeoutMs: 30_000, stallMs: 30_000, ...o.limits } },
    loop: { delayMs: o.loopMs ?? 0 },
    paces: new Paces(),
  } as unknown as LegContext;
}

/** All of one build, if not said otherwise. */
function instance(o: { engineWaiting?: number; loopDelayMs?: number; tokensPerMs?: number; build?: string } = {}) {
  const load = { engineWaiting: o.engineWaiting ?? 0, loopDelayMs: o.loopDelayMs ?? 0 };
  return { info: { role: 2, engineVersion: o.build ?? "1" }, load, tokensPerMs: o.tokensPerMs ?? 0 } as Instance;
}

describe("a distribution of times", () => {
  it("gives percentiles, rounded up by less than half", () => {
    const times = new Latencies();
    assert.equal(times.quantileMs(0.99), 0);
    for (let ms = 1; ms <= 1_000; ms += 1) times.add(bucketOf(ms));
    for (const [share, ms] of [
      [0.01, 10],
      [0.5, 500],
      [0.99, 990],
    ] as const) {
      const found = times.quantileMs(share);
      assert.ok(found >= ms && found < ms * 1.45, `${share}: ${found}`);
    }
  });

  it("forgets what is long past", () => {
    const times = new Latencies();
    for (let count = 0; count < 900; count += 1) times.add(bucketOf(2_000));
    assert.ok(times.quantileMs(0.9) >= 2_000);
    for (let count = 0; count < 10_000; count += 1) times.add(bucketOf(10));
    assert.ok(times.quantileMs(0.99) < 15);
    assert.ok(times.count <= 1_024);
  });

  it("holds any time", () => {
    const times = new Latencies();
    for (const ms of [0, 0.1, -5, 1e12]) times.add(bucketOf(ms));
    assert.equal(times.quantileMs(0.5), 1);
    assert.ok(times.quantileMs(1) > 1_000_000);
  });
});

describe("the patience with a leg", () => {
  const patienceMs = (c: LegContext, part: Wait["part"], on: Instance, tokens = 0): number =>
    waitFor(c, part, on, { sinceMs: 0, tokens }).patienceMs;

  it("is a second on a fresh router, and more for a long prompt", () => {
    for (const part of ["reserve", "prefill", "transfer"] as const)
      assert.equal(patienceMs(context(), part, instance()), 1_000);
    assert.equal(patienceMs(context(), "prefill", instance(), 100), 1_100);
    assert.equal(patienceMs(context(), "prefill", instance(), 60_000), 61_000);
    assert.equal(patienceMs(context(), "prefill", instance({ tokensPerMs: 1 }), 60_000), 121_000);
  });

  it("is learned from the instance, within limits", () => {
    for (const [usualMs, wanted] of [
      [10, 500],
      [500, 1_024],
      [60_000, 10_000],
    ] as const) {
      const c = context();
      const one = instance();
      for (let count = 0; count < 20; count += 1) {
        assert.equal(patienceMs(c, "transfer", one), 1_000, "before enough is known");
        c.paces.of(one).cameFirst(usualMs);
      }
      assert.ok(Math.abs(patienceMs(c, "transfer", one) - wanted) < 2, `${usualMs}: ${patienceMs(c, "transfer", one)}`);
      assert.equal(patienceMs(c, "reserve", one), 1_000, "an engine has no part in a reservation");
    }
  });

  it("is that with its build until the instance has shown its own pace", () => {
    const c = context();
    const [known, fresh, other] = [instance(), instance(), instance({ build: "2" })];
    for (let count = 0; count < 20; count += 1) c.paces.of(known).cameFirst(2_000);
    assert.ok(patienceMs(c, "transfer", fresh) >= 4_000);
    assert.equal(patienceMs(c, "transfer", other), 1_000);
    for (let count = 0; count < 20; count += 1) c.paces.of(fresh).cameFirst(100);
    assert.equal(patienceMs(c, "transfer", fresh), 500);
    c.paces.of(known).prefilled(1_000, 100);
    assert.equal(patienceMs(c, "prefill", other, 100), 1_100);
    assert.equal(patienceMs(c, "prefill", fresh, 100), 520, "at the rate of its build");
  });

  it("grows with the delay of the event loop at either end", () => {
    assert.equal(patienceMs(context({ loopMs: 20 }), "transfer", instance()), 1_160);
    assert.equal(patienceMs(context(), "transfer", instance({ loopDelayMs: 50 })), 1_400);
    assert.equal(patienceMs(context({ loopMs: 100 }), "transfer", instance({ loopDelayMs: 50 })), 1_500, "at most");
  });
});

const paired = (firstMs: number) => ({ firstMs, unpaired: false });

describe("the learned bounds", () => {
  it("are the limits until the pace is known, then a multiple of it, never above the limit", () => {
    for (const [usualMs, transferMs, streamMs] of [
      [100, 10_000, 10_000],
      [1_024, 10_240, 20_480],
      [40_000, 30_000, 30_000],
    ] as const) {
      const c = context();
      const one = instance();
      assert.equal(transferBoundMs(c, one, paired(0)), 30_000);
      assert.equal(streamBoundMs(c, one), 30_000);
      for (let count = 0; count < 20; count += 1) {
        c.paces.of(one).cameFirst(usualMs);
        c.paces.of(one).wrote(usualMs);
      }
      assert.equal(transferBoundMs(c, one, paired(0)), transferMs);
      assert.equal(streamBoundMs(c, one), streamMs);
    }
  });

  it("are the limits while requests wait in the engine, and leave room for a first transfer", () => {
    const c = context();
    const one = instance({ engineWaiting: 3 });
    for (let count = 0; count < 20; count += 1) {
      c.paces.of(one).cameFirst(100);
      c.paces.of(one).wrote(10);
    }
    assert.equal(transferBoundMs(c, one, paired(0)), 30_000);
    assert.equal(streamBoundMs(c, one), 30_000);
    assert.equal(transferBoundMs(c, instance(), { firstMs: 0, unpaired: true }), 30_000, "decode computes the prompt");
    assert.equal(transferBoundMs(c, { ...one, load: undefined } as Instance, paired(60_000)), 60_000);
  });

  it("are stretched by a late event loop, and keep a limit that is lower than what is learned", () => {
    const c = context({ loopMs: 250, limits: { transferTimeoutMs: 1_500, stallMs: 3_000 } });
    const one = instance();
    for (let count = 0; count < 20; count += 1) c.paces.of(one).wrote(10);
    assert.equal(transferBoundMs(c, one, paired(0)), 3_500);
    assert.equal(streamBoundMs(c, one), 5_000);
  });

  it("find a stream that has stopped sooner than stall_ms, once the pace of its instance is known", () => {
    const lab = legLab("p2p-zmq", { stallMs: 30_000 });
    streaming(lab);
    for (let count = 0; count < 30; count += 1) {
      lab.clock.advance(20);
      lab.decodes[0]!.events();
    }
    lab.said();
    lab.clock.advance(9_999);
    assert.deepEqual(lab.said(), []);
    lab.clock.advance(1);
    assert.ok(lab.said().includes("owner decode leg_stalled"));
    // The next leg on the instance starts with what was learned.
    const next = lab.begin({ decode: lab.decodes[0]!.instance });
    lab.decodes[1]!.accept();
    lab.prefills[1]!.done();
    lab.decodes[1]!.events();
    lab.said();
    lab.clock.advance(9_999);
    assert.deepEqual(lab.said(), []);
    lab.clock.advance(1);
    assert.ok(lab.said().includes("owner decode leg_stalled"));
    assert.ok(next.ended);
  });
});

describe("the pace of an instance", () => {
  /** Plays a leg whose parts take so long, and returns the patience with each. */
  function play(lab: Lab, init: LegInit, o: { firstMs?: number }): number[] {
    const leg = lab.begin(init);
    const patienceMs: number[] = [];
    const look = (): void => void patienceMs.push(leg.wait!.patienceMs);
    if (init.unpaired !== true) {
      look();
      lab.clock.advance(1);
      lab.prefills.at(-1)!.done();
    }
    leg.decodeFound(init.decode!);
    lab.decodes.at(-1)!.accept();
    if (init.request?.stream !== false) look();
    lab.clock.advance(o.firstMs ?? 1);
    lab.decodes.at(-1)!.events();
    lab.decodes.at(-1)!.complete();
    return patienceMs;
  }

  it("is learned from the first token of each leg, but not of the first transfer of two engines", () => {
    const lab = legLab("nixl");
    const init = { prefill: lab.instance("p1"), decode: lab.instance("d1") };
    play(lab, init, { firstMs: 9_000 });
    const whole = { ...init, request: { stream: false } };
    for (let count = 0; count < 20; count += 1) {
      assert.equal(play(lab, init, { firstMs: 400 })[1], 1_000, "before enough is known");
      play(lab, whole, { firstMs: 9_000 });
    }
    assert.equal(play(lab, init, {})[1], 1_024, "twice the usual time, rounded up");
  });

  it("is learned from the time that each prefill took beyond that of its prompt, if its rate is known", () => {
    const lab = legLab("nixl");
    const prefill = lab.instance("p1");
    const patienceAt = (prefillMs: number): number => {
      const leg = lab.begin({ prefill });
      const { patienceMs } = leg.wait!;
      lab.clock.advance(prefillMs);
      lab.prefills.at(-1)!.done();
      leg.unwanted();
      return patienceMs;
    };
    for (let count = 0; count < 20; count += 1) patienceAt(9_000);
    // 400 ms for the 4 tokens of its prompt.
    Object.assign(prefill, { tokensPerMs: 0.01 });
    for (let count = 0; count < 20; count += 1) assert.equal(patienceAt(800), 1_800, "too little is known");
    assert.equal(patienceAt(1), 1_824);
  });

  it("is learned from no prefill that set up the connection of two engines", () => {
    const lab = legLab("p2p-nccl");
    const prefill = Object.assign(lab.instance("p1"), { tokensPerMs: 1 });
    for (let count = 0; count < 21; count += 1) {
      const leg = lab.begin({ prefill });
      lab.decodes.at(-1)!.accept();
      assert.equal(leg.wait!.patienceMs, 1_008);
      lab.clock.advance(9_000);
      lab.prefills.at(-1)!.done();
    }
  });

  it("includes the rate at which prompts are computed, except cached ones, also where decode computes them", () => {
    const lab = legLab("nixl");
    const patienceMs = (): number => lab.begin().wait!.patienceMs;
    assert.equal(patienceMs(), 1_004);
    lab.clock.advance(400);
    lab.said();
    // 3 of 5 tokens.
    lab.prefills.at(-1)!.done(3);
    assert.ok(!lab.said().some((text) => / did /.test(text)));
    assert.equal(patienceMs(), 1_004);
    lab.clock.advance(400);
    lab.prefills.at(-1)!.done(2);
    assert.ok(lab.said().includes("books p1 did 4 tokens in 400 ms"));
    assert.equal(patienceMs(), 1_800);
    const alone = legLab("nixl");
    const init = { unpaired: true, decode: alone.instance("d1") };
    for (const wantedMs of [1_004, 1_800]) assert.deepEqual(play(alone, init, { firstMs: 400 }), [wantedMs]);
  });
});

describe("an attempt that another one has overtaken", () => {
  const wait = (o: Partial<Wait>): Wait => ({
    part: "transfer",
    side: "decode",
    on: instance(),
    sinceMs: 1_000,
    patienceMs: 1_000,
    moved: false,
    queuing: false,
    firstMs: 0,
    ...o,
  });

  it("speaks against its instance only if the instance showed no progress for longer than there is reason for", () => {
    const judged = (o: Partial<Wait>, nowMs: number): string => {
      const verdict = outrunVerdict(traitsOf("nixl")!, wait(o), nowMs);
      return verdict.against === "pair" ? `pair ${verdict.verdict}` : verdict.against;
    };
    assert.equal(judged({}, 1_999), "none");
    assert.equal(judged({}, 2_000), "instance");
    assert.equal(judged({ firstMs: 60_000 }, 61_999), "none", "the first transfer of two engines");
    assert.equal(judged({ firstMs: 60_000 }, 62_000), "instance");
    assert.equal(judged({ moved: true }, 2_000), "pair bad");
    assert.equal(judged({ moved: true, queuing: true }, 2_000), "none", "a queue that moves");
  });

  it("speaks against the pair while prefill pushes: decode may not take the KV", () => {
    const judged = (connector: string, part: Wait["part"]): unknown =>
      outrunVerdict(traitsOf(connector)!, wait({ part }), 2_000);
    assert.deepEqual(judged("p2p-nccl", "prefill"), { against: "pair", verdict: "wedged" });
    assert.deepEqual(judged("p2p-nccl", "transfer"), { against: "instance" });
    assert.deepEqual(judged("nixl", "prefill"), { against: "instance" });
  });
});
