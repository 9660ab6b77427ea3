// How a request ends that does not end well, over real gRPC: clients that leave or don't read, instances that fall silent
// or drain.
import assert from "node:assert/strict";
import { State } from "#gen/tandem/instance/v1/instance_pb.js";
import { manualClock } from "../../support/manual-clock.ts";
import { within } from "../../support/waits.ts";
import { deploy, inMidAnswer, untilNoLegs } from "../support/deployment.ts";
import { startDecode, startPrefill, twoTokens } from "../support/fake-instance.ts";
import type { PrefillLeg } from "../support/fake-instance.ts";
import type { Instance } from "../../../services/router/pool/pool.ts";
import { seenIn, untilStanding } from "../support/pool-waits.ts";

const TOKENS = 'data: {"choices":[{"index":0,"text":"a"}]}\n\ndata: {"choices":[{"index":0,"text":"b"}]}\n\n';
const done = (leg: PrefillLeg): void => leg.done();

describe("a client that leaves", () => {
  it("before the reservation is answered: abandons it, with nothing to settle", async () => {
    await using prefill = await startPrefill();
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode]);
    const { gone, ending } = tandem.start();
    const leg = await decode.legs.next("the reservation");
    gone.abort();
    await assert.rejects(ending, { code: "cancelled" });
    assert.equal((await within(leg.abandoned.promise, "the abandon")).nothingSent, true);
    leg.close();
    await untilNoLegs(tandem);
    assert.equal(prefill.legs.all.length, 0);
  });

  it("between the legs: lets prefill end, then abandons the reservation", async () => {
    await using prefill = await startPrefill();
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode]);
    const { gone, ending, client } = tandem.start();
    const held = (await decode.legs.next("the reservation")).accept();
    const leg = await prefill.legs.next("the prefill");
    gone.abort();
    await assert.rejects(ending, { code: "cancelled" });
    assert.deepEqual(held.seen, ["reserve"]);
    assert.equal(tandem.relay.legs, 1);
    leg.done();
    assert.equal((await within(held.abandoned.promise, "the abandon")).nothingSent, false);
    held.fail("cancelled");
    await untilNoLegs(tandem);
    assert.equal(client.started, 0);
    assert.match(await tandem.metrics.text(), /tandem_legs_total\{leg="decode",outcome="cancelled"\} 1/);
  });

  it("in mid-stream: abandons the decode leg", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode]);
    const { gone, ending, leg } = await inMidAnswer(tandem, decode);
    gone.abort();
    await assert.rejects(ending, { code: "cancelled" });
    await within(leg.abandoned.promise, "the abandon");
    await untilNoLegs(tandem);
  });
});

describe("a slow client", () => {
  it("is paced back to its instance, and slows no other client", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode]);
    const slow = tandem.start();
    const slowLeg = (await decode.legs.next("the slow leg")).accept();
    await slowLeg.started.promise;
    slow.client.reading = false;
    const piece = `data: ${"x".repeat(60_000)}\n\n`;
    // The window is 1 MiB: two thirds of it stay with the instance.
    const sent = 50;
    for (let count = 0; count < sent; count += 1) slowLeg.events(piece);
    await slow.client.got(1);

    const quick = tandem.start();
    const quickLeg = (await decode.legs.next("the quick leg")).accept();
    await quickLeg.started.promise;
    // More than the window of the connection that they share.
    for (let count = 0; count < sent; count += 1) quickLeg.events(piece);
    await quick.client.got(sent);
    quickLeg.end();
    await quick.ending;

    const held = slow.client.chunks.length;
    assert.ok(held < 5, `${held} of ${sent} writes reached a client that does not read`);
    const drained = slowLeg.drained();
    slow.client.read();
    await within(drained, "the drain at the instance");
    slowLeg.end();
    await slow.ending;
    assert.equal(slow.client.chunks.length, sent);
  });

  it("is not taken for a stall", async () => {
    const clock = manualClock();
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode], { clock, limits: { stallMs: 4_000 } });
    const { client, ending } = tandem.start();
    const leg = (await decode.legs.next("the reservation")).accept();
    await leg.started.promise;
    client.reading = false;
    leg.events("data: 1\n\n");
    await client.got(1);
    clock.advance(60_000);
    client.read();
    leg.events("data: 2\n\n");
    await client.got(2);
    leg.end();
    await ending;
  });
});

describe("a silent instance", () => {
  it("ends a stream after stall_ms, and says where the time went", async () => {
    const clock = manualClock();
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode], { clock, limits: { stallMs: 4_000 } });
    const { client, ending } = tandem.start();
    const leg = (await decode.legs.next("the reservation")).accept();
    await leg.started.promise;
    leg.events("data: 1\n\n");
    await client.got(1);
    clock.advance(3_900);
    leg.events("data: 2\n\n");
    await client.got(2);
    clock.advance(3_999);
    assert.equal(decode.legs.all[0]!.seen.includes("cancel"), false);
    clock.advance(1);
    await assert.rejects(ending, (error: Error & { code: string }) => {
      assert.equal(error.code, "leg_stalled");
      assert.match(
        error.message,
        /sent nothing for 4000 ms \(reserve 0 ms, prefill 0 ms, transfer 0 ms, decode 7900 ms\)/,
      );
      return true;
    });
    await within(leg.cancelled.promise, "the cancel");
  });

  it("is passed over when it doesn't answer a reservation", async () => {
    const clock = manualClock();
    await using prefill = await startPrefill({}, done);
    await using mute = await startDecode({ instanceId: "d1" });
    await using good = await startDecode({ instanceId: "d2" }, twoTokens);
    await using tandem = await deploy([prefill, mute, good], { clock, constants: { reserveTimeoutMs: 4_000 } });
    const { client, ending, receipt } = tandem.start();
    const leg = await mute.legs.next("the reservation");
    clock.advance(4_000);
    await ending;
    assert.equal(client.text, TOKENS);
    assert.deepEqual(receipt.fallbacks, ["retry:reserve:leg_stalled"]);
    await within(leg.cancelled.promise, "the cancel");
  });

  it("ends with the request's deadline, which names the part that took the time", async () => {
    const clock = manualClock();
    await using prefill = await startPrefill();
    await using decode = await startDecode({}, (leg) => leg.accept());
    await using tandem = await deploy([prefill, decode], { clock });
    const { ending } = tandem.start({ deadlineMs: clock.nowMs() + 2_000 });
    const leg = await prefill.legs.next("the prefill");
    clock.advance(2_000);
    await assert.rejects(ending, {
      code: "deadline_exceeded",
      message: "The request ran past its deadline (queue 0 ms, reserve 0 ms, prefill 2000 ms).",
    });
    leg.done();
    await within(decode.legs.all[0]!.abandoned.promise, "the abandon");
  });

  it("ends with the prefill's timeout", async () => {
    await using prefill = await startPrefill();
    await using decode = await startDecode({}, (leg) => leg.accept());
    const clock = manualClock();
    await using tandem = await deploy([prefill, decode], { clock, limits: { prefillTimeoutMs: 50 } });
    const { ending } = tandem.start();
    await prefill.legs.next("the prefill");
    clock.advance(50);
    await assert.rejects(ending, {
      code: "leg_stalled",
      message: "Prefill did not end within 50 ms (reserve 0 ms, prefill 50 ms).",
    });
    assert.equal((await within(decode.legs.all[0]!.abandoned.promise, "the abandon")).nothingSent, false);
  });
});

describe("a draining instance", () => {
  it("gets no new leg, and finishes its running legs", async () => {
    await using prefill = await startPrefill({}, done);
    await using leaving = await startDecode({ instanceId: "d1" });
    await using staying = await startDecode({ instanceId: "d2" }, twoTokens);
    await using tandem = await deploy([prefill, leaving, staying]);
    const before = tandem.start();
    const leg = (await leaving.legs.next("the reservation")).accept();
    await leg.started.promise;
    await tandem.pool.drain("d1", false);
    for (let count = 0; count < 4; count += 1) await tandem.start().ending;
    assert.equal(leaving.legs.all.length, 1);
    assert.equal(staying.legs.all.length, 4);
    leg.events("data: 1\n\n");
    leg.end();
    await before.ending;
    assert.equal(before.client.text, "data: 1\n\n");
  });

  it("gives an error that counts the instances", async () => {
    await using prefill = await startPrefill({}, done);
    await using one = await startDecode({ instanceId: "d1" });
    await using two = await startDecode({ instanceId: "d2" });
    await using tandem = await deploy([prefill, one, two]);
    one.load({ state: State.DRAINING, reason: "secret" });
    two.load({ state: State.STARTING });
    await untilStanding(tandem.pool, "d1", "draining");
    await untilStanding(tandem.pool, "d2", "starting");
    await assert.rejects(tandem.start().ending, {
      code: "no_instance",
      message:
        "The model `tiny` can't be served: all 2 decode instances are out (1 draining, 1 starting). Try again in a second.",
    });
  });

  it("gives an error that says why no instances fit", async () => {
    await using prefill = await startPrefill({ blockSize: 16 }, done);
    await using decode = await startDecode({ blockSize: 32 });
    await using tandem = await deploy([prefill, decode], { standing: "unmatched" });
    await assert.rejects(tandem.start().ending, {
      code: "no_instance",
      message: /fit each other: they differ in the KV block size\./,
    });
    assert.equal(decode.legs.all.length, 0);
  });
});

describe("a prefill instance whose partners are gone when its KV is ready", () => {
  it("costs the request nothing while another pair serves", async () => {
    const nixl = (instanceId: string) => ({ instanceId, connector: "nixl", kvAddress: "" });
    await using first = await startPrefill(nixl("p1"), () => {});
    await using second = await startPrefill(nixl("p2"), (leg) => leg.done({ ticket: "t" }));
    await using decode = await startDecode(nixl("d1"), twoTokens);
    await using tandem = await deploy([first, second, decode]);
    const { client, receipt, ending } = tandem.start();
    const leg = await first.legs.next("the prefill");
    const instanceOf = (id: string): Instance => seenIn(tandem.pool, id)!.instance;
    tandem.pool.pairEnded(instanceOf("p1"), instanceOf("d1"), "wedged");
    leg.done({ ticket: "t" });
    await ending;
    assert.equal(client.text, TOKENS);
    assert.deepEqual(receipt.fallbacks, ["retry:transfer:instance_unavailable", "pair_avoided"]);
    await untilNoLegs(tandem);
  });
});
