// A second attempt beside one whose first byte is late: which one answers, and what becomes of the other.
import assert from "node:assert/strict";
import { State } from "#gen/tandem/instance/v1/instance_pb.js";
import { manualClock } from "../../support/manual-clock.ts";
import { untilQuiet, within } from "../../support/waits.ts";
import { untilNoLegs, type Deployment } from "../support/deployment.ts";
import { twoTokens, type DecodeLeg, type FakeDecode, type PrefillLeg } from "../support/fake-instance.ts";
import { standingIn } from "../support/fleet.ts";
import type { Instance } from "../../../services/router/pool/pool.ts";
import { seenIn, untilStanding } from "../support/pool-waits.ts";
import { hedgedFleet as fleet, prefillsAtOnce as done } from "../support/hedged-fleet.ts";

const TOKENS = 'data: {"choices":[{"index":0,"text":"a"}]}\n\ndata: {"choices":[{"index":0,"text":"b"}]}\n\n';
const mute = (leg: DecodeLeg): void => void leg.accept();

/** The first attempt, and the hedge that runs beside it because no instance has answered. */
async function bothStarted({ clock, decodes }: Awaited<ReturnType<typeof fleet>>): Promise<[DecodeLeg, DecodeLeg]> {
  const first = await decodes[0]!.legs.next("the first attempt");
  await first.started.promise;
  clock.advance(1_200);
  const hedge = await decodes[1]!.legs.next("the hedge");
  await hedge.started.promise;
  return [first, hedge];
}

describe("a request whose first byte is late", () => {
  it("runs on another pair as well, and the first to answer wins", async () => {
    await using f = await fleet({ decode: [mute, twoTokens] });
    const { tandem, clock, decodes } = f;
    const { client, receipt, ending } = tandem.start();
    const stuck = await decodes[0]!.legs.next("the first attempt");
    await stuck.started.promise;
    clock.advance(1_200);
    await ending;
    assert.equal(client.text, TOKENS);
    assert.deepEqual(receipt.fallbacks, ["hedge:transfer"]);
    assert.deepEqual(
      receipt.legs.map(({ prefillInstanceId, decodeInstanceId, error }) => [
        prefillInstanceId,
        decodeInstanceId,
        error,
      ]),
      [
        ["p1", "d1", "cancelled: another attempt answered first"],
        ["p2", "d2", ""],
      ],
    );
    await within(stuck.abandoned.promise, "the abandon");
    await untilNoLegs(tandem);
    assert.equal(tandem.relay.legs, 0);
    const metrics = await tandem.metrics.text();
    assert.match(metrics, /tandem_hedges_total\{outcome="won"\} 1/);
    assert.match(metrics, /tandem_fallbacks_total\{reason="hedge"\} 1/);
    assert.doesNotMatch(metrics, /tandem_retries_total\{/);
  });

  it("takes out the instance that it waited for, and the next requests go elsewhere", async () => {
    await using f = await fleet({ decode: [mute, twoTokens] });
    const { tandem, clock, decodes } = f;
    const first = Array.from({ length: 8 }, () => tandem.start());
    for (let count = 0; count < 4; count += 1) await (await decodes[0]!.legs.next("a first attempt")).started.promise;
    clock.advance(1_200);
    await Promise.all(first.map(({ ending }) => ending));
    assert.ok(first.every(({ client }) => client.text === TOKENS));
    assert.equal(standingIn(tandem.pool.view, "d1"), "outrun");
    assert.equal(standingIn(tandem.pool.view, "p1"), "serves");
    const next = Array.from({ length: 8 }, () => tandem.start());
    await Promise.all(next.map(({ ending }) => ending));
    assert.ok(next.every(({ receipt }) => receipt.legs.length === 1 && receipt.fallbacks.length === 0));
  });

  it("takes it out only until a probe succeeds, or its engine has restarted", async () => {
    for (const end of ["probe", "restart"]) {
      const poolClock = manualClock();
      const muteToUsers = (leg: DecodeLeg): void => {
        leg.accept();
        if (leg.reserve.body.includes("logprobs")) void leg.started.promise.then(() => leg.end({}, "{}"));
      };
      await using f = await fleet({
        decode: [muteToUsers, twoTokens],
        breaker: { failureLimit: 5, probeEveryMs: 500 },
        poolClock,
      });
      const { tandem, clock, decodes } = f;
      const { ending } = tandem.start();
      await (await decodes[0]!.legs.next("the first attempt")).started.promise;
      clock.advance(1_200);
      await ending;
      assert.equal(standingIn(tandem.pool.view, "d1"), "outrun");
      if (end === "probe") poolClock.advance(500);
      else {
        decodes[0]!.load({ state: State.STARTING });
        await untilStanding(tandem.pool, "d1", "starting");
        decodes[0]!.load({ state: State.SERVING });
      }
      await untilStanding(tandem.pool, "d1", "serves");
    }
  });

  it("does not take out the last instance of a side by that", async () => {
    let hangs = true;
    await using f = await fleet({ decode: [(leg) => (hangs ? mute(leg) : twoTokens(leg)), twoTokens] });
    const { tandem, clock, decodes } = f;
    const { ending } = tandem.start();
    await (await decodes[0]!.legs.next("the first attempt")).started.promise;
    clock.advance(1_200);
    await ending;
    assert.equal(standingIn(tandem.pool.view, "d1"), "outrun");
    await tandem.pool.drain("d2", false);
    assert.equal(standingIn(tandem.pool.view, "d1"), "serves");
    hangs = false;
    await tandem.start().ending;
    await tandem.pool.drain("d2", true);
    assert.equal(standingIn(tandem.pool.view, "d1"), "serves", "a leg that ended well is as good as a probe");
  });

  it("in prefill too, whose own answer may come at any time, and settles the reservation then", async () => {
    await using f = await fleet({ decode: [twoTokens, twoTokens], prefill: [() => {}, done] });
    const { tandem, clock, decodes, prefills } = f;
    const { client, receipt, ending } = tandem.start();
    const stuck = await prefills[0]!.legs.next("the prefill");
    clock.advance(1_200);
    await ending;
    assert.equal(client.text, TOKENS);
    assert.deepEqual(receipt.fallbacks, ["hedge:prefill"]);
    assert.equal(standingIn(tandem.pool.view, "p1"), "outrun");
    // P2P: a prefill that pushes can't be cancelled, so the reservation lasts until its outcome is known.
    const held = decodes[0]!.legs.all[0]!;
    assert.deepEqual(held.seen, ["reserve"]);
    stuck.done();
    assert.equal((await within(held.abandoned.promise, "the abandon")).nothingSent, false);
    held.close();
    await untilNoLegs(tandem);
    assert.equal(standingIn(tandem.pool.view, "p1"), "serves", "it was slow, and not stalled");
  });

  it("in prefill, where decode may hold it up: against the pair, and the instance only with a second partner", async () => {
    await using f = await fleet({ connector: "p2p-nccl", decode: [twoTokens, twoTokens], prefill: [() => {}, done] });
    const { tandem, clock, decodes, prefills } = f;
    const instanceOf = (id: string): Instance => seenIn(tandem.pool, id)!.instance;
    // KV has moved between them, so there is nothing to set up.
    tandem.pool.pairEnded(instanceOf("p1"), instanceOf("d1"), "good");
    const { ending } = tandem.start();
    const stuck = await prefills[0]!.legs.next("the prefill");
    clock.advance(1_200);
    await ending;
    const partners = tandem.pool.view.models.get("tiny")!.partnersOf(instanceOf("p1"));
    assert.deepEqual([standingIn(tandem.pool.view, "p1"), partners.map((one) => one.instanceId)], ["serves", ["d2"]]);
    tandem.pool.pairEnded(instanceOf("p1"), instanceOf("d2"), "wedged");
    assert.deepEqual([standingIn(tandem.pool.view, "p1"), standingIn(tandem.pool.view, "d1")], ["outrun", "serves"]);
    stuck.done();
    const held = decodes[0]!.legs.all[0]!;
    await within(held.abandoned.promise, "the abandon");
    held.close();
    await untilNoLegs(tandem);
  });

  it("is answered by the first attempt if that one comes first", async () => {
    await using f = await fleet({ decode: [mute, mute] });
    const { tandem } = f;
    const { client, ending } = tandem.start();
    const [slow, hedge] = await bothStarted(f);
    slow.events("data: 1\n\n");
    await client.got(1);
    await within(hedge.abandoned.promise, "the abandon of the hedge");
    slow.end({}, "data: 2\n\n");
    await ending;
    assert.equal(client.text, "data: 1\n\ndata: 2\n\n");
    assert.match(await tandem.metrics.text(), /tandem_hedges_total\{outcome="lost"\} 1/);
    assert.equal(standingIn(tandem.pool.view, "d2"), "serves");
    await untilNoLegs(tandem);
  });

  it("never delivers bytes of two attempts", async () => {
    await using f = await fleet({ decode: [mute, mute] });
    const { tandem } = f;
    const { client, ending } = tandem.start();
    const [slow, hedge] = await bothStarted(f);
    slow.endsWhenAbandoned = false;
    hedge.events("data: 1\n\n");
    await client.got(1);
    slow.events("data: late\n\n");
    slow.end({}, "data: late\n\n");
    await untilQuiet();
    hedge.end({}, "data: 2\n\n");
    await ending;
    assert.equal(client.text, "data: 1\n\ndata: 2\n\n");
  });

  it("goes on with the attempt that is left when the other one fails", async () => {
    for (const failing of [0, 1]) {
      await using f = await fleet({ decode: [mute, mute], limits: { retryLimit: 0 } });
      const { tandem } = f;
      const { client, ending, receipt } = tandem.start();
      const [slow, hedge] = await bothStarted(f);
      const legs = [slow, hedge];
      legs[failing]!.fail("engine_failed");
      await untilNoLegOn(tandem, `d${failing + 1}`);
      legs[1 - failing]!.end({}, "data: 1\n\n");
      await ending;
      assert.equal(client.text, "data: 1\n\n");
      assert.match(receipt.legs[failing]!.error, /^engine_failed/);
      assert.match(
        await tandem.metrics.text(),
        new RegExp(`tandem_hedges_total\\{outcome="${failing === 0 ? "won" : "failed"}"\\} 1`),
      );
    }
  });

  it("ends with the first attempt if every other one would end like it", async () => {
    await using f = await fleet({ decode: [mute, mute] });
    const { tandem } = f;
    const { ending } = tandem.start();
    const [slow, hedge] = await bothStarted(f);
    slow.fail("engine_refused");
    await assert.rejects(ending, { code: "engine_refused" });
    await within(hedge.abandoned.promise, "the abandon of the hedge");
    await untilNoLegs(tandem);
  });

  it("leaves nothing behind when its client leaves", async () => {
    await using f = await fleet({ decode: [mute, mute] });
    const { tandem } = f;
    const { ending, gone } = tandem.start();
    const [slow, hedge] = await bothStarted(f);
    gone.abort();
    await assert.rejects(ending, { code: "cancelled" });
    for (const leg of [slow, hedge]) await within(leg.abandoned.promise, "the abandon");
    await untilNoLegs(tandem);
    assert.match(await tandem.metrics.text(), /tandem_hedges_total\{outcome="cancelled"\} 1/);
  });

  it("also if its answer is not streamed, by an instance that reports tokens as they come", async () => {
    await using f = await fleet({ decode: [(leg) => void leg.accept(true), (leg) => void leg.accept(true)] });
    const { tandem } = f;
    const { client, ending, receipt } = tandem.start({ stream: false });
    const [stuck, hedge] = await bothStarted(f);
    // The first tokens decide, not the body, which may take minutes.
    hedge.events("", 3);
    await within(stuck.abandoned.promise, "the abandon");
    hedge.end({}, "{}");
    await ending;
    assert.equal(client.text, "{}");
    assert.deepEqual(receipt.fallbacks, ["hedge:transfer"]);
    await untilNoLegs(tandem);
  });

  it("takes another decode instance too if prefill comes first (nixl)", async () => {
    await using f = await fleet({ connector: "nixl", decode: [mute, twoTokens] });
    const { tandem, clock, decodes } = f;
    const { client, ending, receipt } = tandem.start();
    await (await decodes[0]!.legs.next("the first attempt")).started.promise;
    // The first transfer of two engines may take long, so this is no stall. Trying elsewhere costs little.
    clock.advance(1_200);
    await ending;
    assert.equal(client.text, TOKENS);
    assert.deepEqual(
      receipt.legs.map(({ decodeInstanceId }) => decodeInstanceId),
      ["d1", "d2"],
    );
    assert.equal(standingIn(tandem.pool.view, "d1"), "serves");
    await untilNoLegs(tandem);
  });
});

describe("a body that makes engines fail", () => {
  it("is known by the failures of an attempt and of a hedge, and then runs nowhere any more", async () => {
    const poisoned: DecodeLeg[] = [];
    const serve = (leg: DecodeLeg): void => {
      if (!leg.reserve.body.includes("poison")) return twoTokens(leg);
      leg.accept();
      // The second attempt hangs, and is hedged.
      if (poisoned.push(leg) !== 2) void leg.started.promise.then(() => leg.fail("engine_failed"));
    };
    await using f = await fleet({ decode: [serve, serve, serve] });
    const { tandem, clock, decodes } = f;
    await Promise.all(Array.from({ length: 9 }, () => tandem.start().ending));
    assert.ok(decodes.every(({ legs }) => legs.all.length > 0));
    const { ending, receipt } = tandem.start({ body: Buffer.from('{"prompt":"a poison pill"}') });
    while (poisoned.length < 2) await untilQuiet();
    await poisoned[1]!.started.promise;
    clock.advance(1_200);
    await assert.rejects(ending, { code: "query_of_death" });
    await within(poisoned[1]!.abandoned.promise, "the abandon of the attempt that hangs");
    assert.equal(poisoned.length, 3);
    assert.deepEqual(receipt.fallbacks, ["retry:transfer:engine_failed", "hedge:transfer"]);
    await untilNoLegs(tandem);
    assert.match(await tandem.metrics.text(), /tandem_hedges_total\{outcome="cancelled"\} 1/);
  });
});

describe("a request that is not hedged", () => {
  it("is late on the only instance of its side", async () => {
    await using f = await fleet({ decode: [mute] });
    const { tandem, clock, decodes } = f;
    const { ending } = tandem.start();
    const slow = await decodes[0]!.legs.next("the only attempt");
    await slow.started.promise;
    clock.advance(5_000);
    slow.end({}, "data: 1\n\n");
    await ending;
    assert.equal(decodes[0]!.legs.all.length, 1);
    assert.match(await tandem.metrics.text(), /tandem_hedges_refused_total\{because="no_pair"\} 1/);
    assert.equal(standingIn(tandem.pool.view, "d1"), "serves");
  });

  it("finds the budget used up", async () => {
    await using f = await fleet({ decode: [mute, mute] });
    const { tandem, clock, decodes } = f;
    const started = Array.from({ length: 40 }, () => tandem.start());
    for (const decode of decodes)
      for (let count = 0; count < 20; count += 1) await (await decode.legs.next("an attempt")).started.promise;
    clock.advance(2_000);
    await untilQuiet();
    const legs = decodes.reduce((sum, { legs: { all } }) => sum + all.length, 0);
    assert.ok(legs > 40 && legs <= 40 + 18, `${legs} legs for 40 requests`);
    for (const { gone } of started) gone.abort();
    assert.match(await tandem.metrics.text(), /tandem_hedges_refused_total\{because="budget"\} 2[234]\n/);
  });

  it("comes while there is no capacity to spare, until there is", async () => {
    let calm = false;
    await using f = await fleet({ decode: [mute, twoTokens], isCalm: () => calm });
    const { tandem, clock, decodes } = f;
    const { ending } = tandem.start();
    await (await decodes[0]!.legs.next("the first attempt")).started.promise;
    clock.advance(1_200);
    assert.match(await tandem.metrics.text(), /tandem_hedges_refused_total\{because="overload"\} 1/);
    assert.equal(decodes[1]!.legs.all.length, 0);
    calm = true;
    clock.advance(1_000);
    await ending;
  });

  it("takes a minute to prefill, honestly: it is hedged once, and not failed", async () => {
    const held: PrefillLeg[] = [];
    const hold = (leg: PrefillLeg): void => void held.push(leg);
    await using f = await fleet({
      decode: [twoTokens, twoTokens],
      prefill: [hold, hold],
      // As shipped.
      limits: { prefillTimeoutMs: 120_000, prefillFloorMs: 10_000, prefillSlack: 10 },
    });
    const { tandem, clock, prefills } = f;
    // 25,000 tokens, which are late on a fresh router after 26 s.
    const { client, ending, receipt } = tandem.start({ body: Buffer.alloc(100_000, 32) });
    await prefills[0]!.legs.next("the prefill");
    clock.advance(25_900);
    await untilQuiet();
    assert.equal(prefills[1]!.legs.all.length, 0);
    clock.advance(200);
    await prefills[1]!.legs.next("the hedge's prefill");
    clock.advance(33_900);
    await untilQuiet();
    assert.equal(held.length, 2);
    held[0]!.done();
    await ending;
    assert.equal(client.text, TOKENS);
    assert.equal(receipt.legs.length, 2);
    assert.equal(receipt.legs[0]!.error, "");
    assert.equal(standingIn(tandem.pool.view, "p1"), "serves");
    held[1]!.done();
    await untilAbandoned(f.decodes[1]!);
    await untilNoLegs(tandem);
    assert.equal(standingIn(tandem.pool.view, "p2"), "serves");
  });
});

async function untilAbandoned(decode: FakeDecode): Promise<void> {
  const leg = decode.legs.all.at(-1)!;
  await within(leg.abandoned.promise, "the abandon");
  leg.close();
}

async function untilNoLegOn({ pool }: Deployment, id: string): Promise<void> {
  const busy = (): boolean =>
    [...pool.view.prefill, ...pool.view.decode].some(({ instance }) => instance.instanceId === id && instance.legs > 0);
  while (busy()) await untilQuiet();
}
