// Clients that leave in mid-answer: their legs are abandoned and not cut, so that any number of them leaves the connection
// to the decode instance whole.
import assert from "node:assert/strict";
import { manualClock } from "../../support/manual-clock.ts";
import { eventually, within } from "../../support/waits.ts";
import { settled, simDecode, simPrefill, type SimInstance } from "../../instance/legs.ts";
import { deploy, inMidAnswer, untilNoLegs, type Deployment } from "../support/deployment.ts";
import { startDecode, startPrefill } from "../support/fake-instance.ts";
import type { FakeInstance, PrefillLeg } from "../support/fake-instance.ts";

const done = (leg: PrefillLeg): void => leg.done();
const ENDLESS = JSON.stringify({
  model: "tandem-sim",
  prompt: "hi",
  max_tokens: 8_000,
  ignore_eos: true,
  stream: true,
});

/** A relay over real instances. */
function relayOver(instances: readonly SimInstance[], unpaired: boolean): Promise<Deployment> {
  const known = instances.map(({ instance }) => ({ info: instance.info() }) as FakeInstance);
  return deploy(known, { unpaired });
}

/** Decode legs that have ended, by how. */
async function decodeLegs({ metrics }: Deployment): Promise<Record<string, number>> {
  const lines = (await metrics.text()).matchAll(/^tandem_legs_total\{leg="decode",outcome="(\w+)"\} (\d+)$/gm);
  return Object.fromEntries([...lines].map(([, outcome, count]) => [outcome!, Number(count)]));
}

describe("clients that leave in mid-answer", () => {
  it("do not cost the connection to their decode instance, even in large numbers", async function () {
    this.timeout(120_000);
    // nghttp2 allows 1,000 resets and 33 a second after that; beyond, it breaks the connection with all that is on it.
    const LEAVERS = 3_000;
    const AT_ONCE = 50;
    await using decode = await startDecode({ connector: "nixl" }, (leg) => {
      leg.accept();
      void leg.started.promise.then(() => leg.events("data: 1\n\n"));
    });
    decode.load({ freeSlots: 10_000 });
    await using tandem = await deploy([decode], { unpaired: true });
    const stays = tandem.start();
    await stays.client.got(1);
    const long = decode.legs.all[0]!;
    for (let left = 0; left < LEAVERS; left += AT_ONCE) {
      await Promise.all(
        Array.from({ length: AT_ONCE }, async () => {
          const { client, gone, ending } = tandem.start();
          await client.got(1);
          gone.abort();
          await assert.rejects(ending, { code: "cancelled" });
        }),
      );
      // Neither may be quiet for seconds, or it would be passed over or taken for stalled.
      decode.load({ freeSlots: 10_000 });
      long.events("data: on\n\n");
      await stays.client.got(2 + left / AT_ONCE);
    }
    long.end();
    await untilNoLegs(tandem);
    assert.deepEqual(await decodeLegs(tandem), { cancelled: LEAVERS, completed: 1 });
  });

  it("stop the engine's work and free their slots", async () => {
    await using decode = await simDecode("nixl", {}, { decodeMsPerToken: 20 });
    await using tandem = await relayOver([decode], true);
    const requests = Array.from({ length: 40 }, () =>
      tandem.start({ model: "tandem-sim", body: Buffer.from(ENDLESS) }),
    );
    for (const { client, gone, ending } of requests) {
      await client.got(1);
      gone.abort();
      await assert.rejects(ending, { code: "cancelled" });
    }
    await untilNoLegs(tandem);
    await settled(decode);
    assert.equal(decode.engine.state().outcomes.aborted, requests.length);
    assert.deepEqual(await decodeLegs(tandem), { cancelled: requests.length });
  });

  it("leave no pushed KV behind", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode("p2p-zmq", {}, { decodeMsPerToken: 20 });
    await using tandem = await relayOver([prefill, decode], false);
    const requests = Array.from({ length: 20 }, () =>
      tandem.start({ model: "tandem-sim", body: Buffer.from(ENDLESS) }),
    );
    await requests[0]!.client.got(1);
    for (const { gone } of requests) gone.abort();
    for (const { ending } of requests) await assert.rejects(ending, { code: "cancelled" });
    await untilNoLegs(tandem);
    await settled(decode);
    assert.equal(decode.engine.state().kv_orphans, 0);
  });
});

describe("an answer that was given up", () => {
  it("ends although its client had stopped reading, and delivers nothing more", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode]);
    const { client, gone, ending } = tandem.start();
    const leg = (await decode.legs.next("the reservation")).accept();
    await leg.started.promise;
    client.reading = false;
    // More than the windows and buffers between the two hold.
    for (let count = 0; count < 60; count += 1) leg.events(`data: ${"x".repeat(60_000)}\n\n`);
    await client.got(1);
    const held = client.chunks.length;
    gone.abort();
    await assert.rejects(ending, { code: "cancelled" });
    await within(leg.abandoned.promise, "the abandon");
    await untilNoLegs(tandem);
    assert.equal(client.chunks.length, held);
    assert.deepEqual(leg.seen, ["reserve", "start", "abandon"]);
  });

  it("can be abandoned during the delivery of its tokens", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode]);
    const { client, gone, ending } = tandem.start();
    const leg = (await decode.legs.next("the reservation")).accept();
    await leg.started.promise;
    client.write = (bytes) => {
      client.chunks.push(bytes.toString());
      gone.abort();
      return false; // As a socket says that was closed.
    };
    for (let count = 0; count < 60; count += 1) leg.events(`data: ${"x".repeat(60_000)}\n\n`);
    await assert.rejects(ending, { code: "cancelled" });
    await untilNoLegs(tandem);
    assert.equal(client.chunks.length, 1);
  });

  it("can be abandoned before its instance has accepted it", async () => {
    await using prefill = await startPrefill({ connector: "nixl" }, done);
    await using decode = await startDecode({ connector: "nixl" });
    await using tandem = await deploy([prefill, decode]);
    const { gone, ending } = tandem.start();
    const leg = await decode.legs.next("the reservation");
    await leg.started.promise;
    gone.abort();
    await assert.rejects(ending, { code: "cancelled" });
    await untilNoLegs(tandem);
    assert.deepEqual(leg.seen, ["reserve", "start", "abandon"]);
  });

  it("holds its slot in the books until its instance ends it, and is cut if that never happens", async () => {
    const clock = manualClock();
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode], { clock });
    const { gone, ending, leg } = await inMidAnswer(tandem, decode);
    leg.endsWhenAbandoned = false;
    gone.abort();
    await assert.rejects(ending, { code: "cancelled" });
    await within(leg.abandoned.promise, "the abandon");
    clock.advance(29_999);
    assert.equal(tandem.relay.legs, 1);
    assert.equal(tandem.pool.view.decode[0]!.instance.legs, 1);
    clock.advance(1);
    await within(leg.cancelled.promise, "the cut");
    assert.equal(tandem.relay.legs, 0);
    assert.equal(tandem.pool.view.decode[0]!.instance.legs, 0);
  });

  it("is over when its instance is lost", async () => {
    await using prefill = await startPrefill({}, done);
    const decode = await startDecode();
    await using tandem = await deploy([prefill, decode]);
    const { gone, ending, leg } = await inMidAnswer(tandem, decode);
    leg.endsWhenAbandoned = false;
    gone.abort();
    await assert.rejects(ending, { code: "cancelled" });
    await within(leg.abandoned.promise, "the abandon");
    await decode[Symbol.asyncDispose]();
    await eventually("the leg is over", () => tandem.relay.legs === 0);
  });
});

describe("an answer whose last events go to a client that does not read", () => {
  it("still leaves nothing open at its instance", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode]);
    const { client, ending } = tandem.start();
    const leg = (await decode.legs.next("the reservation")).accept();
    await leg.started.promise;
    client.reading = false;
    leg.last({}, "data: 1\n\n");
    await ending;
    await within(leg.halfClosed.promise, "the router's end of the call");
    // More than may be under way unread.
    for (let count = 0; count < 60; count += 1) leg.events(`data: ${"x".repeat(60_000)}\n\n`);
    await within(leg.drained(), "the router's reading");
    leg.close();
  });
});
