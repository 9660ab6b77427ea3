// How long each part of a request may take, over real gRPC, and that its error names the part.
import assert from "node:assert/strict";
import { answerBoundMs, prefillBoundMs, reserveBoundMs } from "../../../services/router/leg/bounds.ts";
import { Paces } from "../../../services/router/leg/paces.ts";
import type { Instance } from "../../../services/router/pool/pool.ts";
import { manualClock } from "../../support/manual-clock.ts";
import { within } from "../../support/waits.ts";
import { deploy, LIMITS, untilNoLegs } from "../support/deployment.ts";
import { startDecode, startPrefill, twoTokens } from "../support/fake-instance.ts";
import type { PrefillLeg } from "../support/fake-instance.ts";
import { standingIn } from "../support/fleet.ts";
import { instanceIn } from "../support/pool-waits.ts";

const done = (leg: PrefillLeg): void => leg.done();

describe("the bound of a reservation", () => {
  it("allows a long body the time to get there, for many may go to one instance at once", () => {
    const context = { reserveTimeoutMs: 2_000, loop: { delayMs: 0 } };
    const decode = { load: undefined } as Instance;
    assert.equal(reserveBoundMs(context, decode, Buffer.alloc(0)), 2_000);
    assert.equal(reserveBoundMs(context, decode, Buffer.alloc(10 * 1024 * 1024)), 12_005);
  });
});

describe("the bound of a prefill", () => {
  const limits = { ...LIMITS, prefillTimeoutMs: 120_000, prefillFloorMs: 1_000, prefillSlack: 10 };
  const rated = (tokensPerMs: number): Instance => ({ tokensPerMs }) as Instance;

  it("grows with the prompt and the tokens that wait before it, by the rate seen so far", () => {
    assert.equal(prefillBoundMs(limits, rated(10), 100), 1_100);
    assert.equal(prefillBoundMs(limits, rated(10), 10_000), 11_000);
    assert.equal(prefillBoundMs(limits, rated(1), 10_000), 101_000);
  });

  it("is the fixed limit if it exceeds that limit, before a rate is known, and if it is switched off", () => {
    assert.equal(prefillBoundMs(limits, rated(1), 1_000_000), 120_000);
    assert.equal(prefillBoundMs(limits, rated(0), 1), 120_000);
    assert.equal(prefillBoundMs({ ...limits, prefillSlack: 0 }, rated(10), 1), 120_000);
  });

  it("is learned from prefills that end, and cancels one that hangs", async () => {
    const clock = manualClock();
    await using prefill = await startPrefill();
    await using decode = await startDecode({}, twoTokens);
    await using tandem = await deploy([prefill, decode], {
      clock,
      limits: { prefillTimeoutMs: 60_000, prefillFloorMs: 50, prefillSlack: 5, retryLimit: 0 },
    });
    const first = tandem.start();
    const leg = await prefill.legs.next("the first prefill");
    clock.advance(10);
    leg.done({ promptTokens: 5, cachedTokens: 0 });
    await first.ending;
    // 4 tokens by the size of the body, in 10 ms.
    assert.equal(instanceIn(tandem.pool, "p1")!.tokensPerMs, 0.4);
    const { ending } = tandem.start();
    const hung = await prefill.legs.next("the second prefill");
    clock.advance(99);
    assert.equal(tandem.relay.legs, 1);
    // The first prompt counts as waiting until the instance has told its load again.
    clock.advance(51);
    await assert.rejects(ending, {
      code: "leg_stalled",
      message: /^Prefill did not end within (100|150) ms \(reserve 0 ms, prefill \1 ms\)\.$/,
    });
    await within(hung.cancelled.promise, "the cancel");
  });
});

describe("a prefill that stalls while it pushes its KV", () => {
  it("speaks against the pair: the same prefill instance serves on with another decode instance", async () => {
    const clock = manualClock();
    const deaf = "127.0.0.1:1";
    await using prefill = await startPrefill({}, (leg) => {
      if (leg.request.decodeKvAddress !== deaf) leg.done();
    });
    await using first = await startDecode({ instanceId: "d1", kvAddress: deaf }, twoTokens);
    await using second = await startDecode({ instanceId: "d2", kvAddress: "127.0.0.1:2" }, twoTokens);
    await using tandem = await deploy([prefill, first, second], {
      clock,
      limits: { prefillTimeoutMs: 100, retryLimit: 0 },
    });
    const started = Array.from({ length: 24 }, () => tandem.start());
    const on = (id: string) => started.filter(({ receipt }) => receipt.legs[0]!.decodeInstanceId === id);
    const [hung, sound] = [on("d1"), on("d2")];
    // More than take an instance out.
    assert.ok(hung.length >= 6 && sound.length > 0, `${hung.length} of 24`);
    await Promise.all(sound.map(({ ending }) => ending));
    for (let count = 0; count < started.length; count += 1) await prefill.legs.next("a prefill");
    clock.advance(100);
    for (const { ending } of hung) await assert.rejects(ending, { code: "leg_stalled" });
    assert.equal(standingIn(tandem.pool.view, "p1"), "serves");
    for (let count = 0; count < 3; count += 1) await tandem.start().ending;
  });
});

describe("the first token", () => {
  it("has a bound of its own, for all attempts together", async () => {
    const clock = manualClock();
    await using prefill = await startPrefill();
    await using decode = await startDecode({}, (leg) => leg.accept());
    await using tandem = await deploy([prefill, decode], { clock, limits: { firstTokenTimeoutMs: 2_000 } });
    const { ending } = tandem.start();
    const leg = await prefill.legs.next("the prefill");
    clock.advance(1_999);
    assert.equal(tandem.relay.legs, 1);
    clock.advance(1);
    await assert.rejects(ending, {
      code: "deadline_exceeded",
      message: "No token came within 2000 ms (queue 0 ms, reserve 0 ms, prefill 2000 ms).",
    });
    leg.done();
    await within(decode.legs.all[0]!.abandoned.promise, "the abandon");
  });

  it("has no bound in a non-streaming answer", async () => {
    const clock = manualClock();
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode({}, (leg) => leg.accept());
    await using tandem = await deploy([prefill, decode], {
      clock,
      limits: { firstTokenTimeoutMs: 2_000, transferTimeoutMs: 1_000, stallMs: 1_000 },
    });
    const { client, ending } = tandem.start({ stream: false });
    await (await decode.legs.next("the leg")).started.promise;
    clock.advance(600_000);
    decode.legs.all[0]!.end({}, "{}");
    await ending;
    assert.equal(client.text, "{}");
    await untilNoLegs(tandem);
  });
});

describe("the bound of a non-streaming answer", () => {
  const limits = { ...LIMITS, transferTimeoutMs: 600, stallMs: 400 };
  const decode = { info: { maxModelLen: 500 } } as Instance;

  it("allows for its tokens at the slowest pace seen on its instance, which is forgotten slowly", () => {
    const pace = new Paces().of(decode);
    const boundMs = (tokens: number | undefined): number => answerBoundMs(limits, decode, pace, tokens);
    assert.equal(boundMs(100), Infinity, "before any was seen");
    pace.answered(2_000, 100);
    assert.equal(boundMs(100), 1_000 + 10 * 100 * 20);
    pace.answered(300, 100);
    assert.equal(boundMs(100), 1_000 + 10 * 100 * 19.6);
    for (let count = 0; count < 200; count += 1) pace.answered(300, 100);
    assert.equal(boundMs(100), 1_000 + 10 * 100 * 3);
    assert.equal(boundMs(undefined), 1_000 + 10 * 500 * 3, "of as many as the model has room for");
  });

  it("is not learned from answers that are mostly transfer", () => {
    const pace = new Paces().of(decode);
    pace.answered(5_000, 1);
    assert.equal(answerBoundMs(limits, decode, pace, 100), Infinity);
  });

  it("fails an answer that stalls alone, and names the part", async () => {
    const clock = manualClock();
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode({ instanceId: "d1" }, (leg) => leg.accept());
    await using tandem = await deploy([prefill, decode], {
      clock,
      limits: { transferTimeoutMs: 3_000, stallMs: 2_000, retryLimit: 0 },
    });
    const first = tandem.start({ stream: false, maxTokens: 20 });
    const leg = await decode.legs.next("the first leg");
    await leg.started.promise;
    clock.advance(200);
    leg.end({ completionTokens: 20 }, "{}");
    await first.ending;
    const { ending } = tandem.start({ stream: false, maxTokens: 20 });
    const stuck = await decode.legs.next("the second leg");
    await stuck.started.promise;
    // 20 tokens at 10 ms each, ten times over, and the floor.
    clock.advance(6_999);
    assert.equal(stuck.seen.includes("cancel"), false);
    clock.advance(1);
    await assert.rejects(ending, {
      code: "leg_stalled",
      message:
        "The non-streaming answer was not complete within 7000 ms (reserve 0 ms, prefill 0 ms, transfer 7000 ms).",
    });
    await within(stuck.cancelled.promise, "the cancel");
    await untilNoLegs(tandem);
  });
});

describe("an instance that can't be connected", () => {
  it("is passed over in time, and the request goes elsewhere", async () => {
    await using prefill = await startPrefill({}, done);
    await using gone = await startDecode({ instanceId: "d1" });
    await using good = await startDecode({ instanceId: "d2" }, twoTokens);
    // On a clock that nobody moves: what is given up isn't for its time.
    await using tandem = await deploy([prefill, gone, good], { clock: manualClock() });
    await gone[Symbol.asyncDispose]();
    // Its death is heard of sooner or later; until then a leg may be placed on it.
    for (let count = 0; count < 4; count += 1) await within(tandem.start().ending, "an answer");
    assert.equal(gone.legs.all.length, 0);
  });
});

describe("a router's retries", () => {
  it("end with its budget, and each retry refused is counted", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode({ instanceId: "d1" }, (leg) => leg.fail("engine_failed"));
    await using other = await startDecode({ instanceId: "d2" }, (leg) => leg.fail("engine_failed"));
    await using tandem = await deploy([prefill, decode, other], {
      limits: { retryLimit: 5, retryRatio: 0 },
      constants: { retriesPerS: 1 },
      breaker: { failureLimit: 1_000, probeEveryMs: 60_000 },
    });
    for (let count = 0; count < 10; count += 1) await assert.rejects(tandem.start().ending, { code: "engine_failed" });
    const legs = decode.legs.all.length + other.legs.all.length;
    assert.ok(legs <= 13, `${legs} legs for 10 requests`);
    assert.match(await tandem.metrics.text(), /tandem_retries_refused_total\{because="budget"\} (8|9|10)\n/);
  });

  it("do not exist for a strict request", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode({ instanceId: "d1" }, (leg) => leg.fail("engine_failed"));
    await using other = await startDecode({ instanceId: "d2" }, (leg) => leg.fail("engine_failed"));
    await using tandem = await deploy([prefill, decode, other]);
    const { ending, receipt } = tandem.start({ strict: true });
    await assert.rejects(ending, { code: "engine_failed" });
    assert.equal(receipt.legs.length, 1);
    assert.match(await tandem.metrics.text(), /tandem_retries_refused_total\{because="strict"\} 1/);
  });
});
