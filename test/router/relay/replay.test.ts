// A stream that breaks after its first byte and is written again on another pair.
import assert from "node:assert/strict";
import { systemClock, type Clock } from "../../../services/common/clock.ts";
import type { RelayLimits } from "../../../services/router/config.ts";
import type { RelayRequest } from "../../../services/router/request/request.ts";
import { SentSoFar } from "../../../services/router/relay/sent-so-far.ts";
import { manualClock } from "../../support/manual-clock.ts";
import { deploy, untilNoLegs, type Deployment } from "../support/deployment.ts";
import {
  startDecode,
  startPrefill,
  type DecodeLeg,
  type FakeDecode,
  type PrefillLeg,
} from "../support/fake-instance.ts";

const done = (leg: PrefillLeg): void => leg.done();
const GREEDY = { stream: true, repeatable: true };

interface Scene extends AsyncDisposable {
  readonly tandem: Deployment;
  /** The next decode leg, wherever it comes, once it was started. */
  next(): Promise<DecodeLeg>;
}

async function scene(
  limits: Partial<RelayLimits> = {},
  engine = "embedded",
  clock: Clock = systemClock,
): Promise<Scene> {
  const arrived: DecodeLeg[] = [];
  let wake: (() => void) | undefined;
  const onLeg = (leg: DecodeLeg): void => {
    leg.accept();
    void leg.started.promise.then(() => {
      arrived.push(leg);
      wake?.();
    });
  };
  const prefill = await startPrefill({ engine }, done);
  const decodes: FakeDecode[] = [];
  for (const instanceId of ["d1", "d2", "d3"]) decodes.push(await startDecode({ instanceId, engine }, onLeg));
  const tandem = await deploy([prefill, ...decodes], { clock, limits: { retryLimit: 2, ...limits } });
  return {
    tandem,
    async next() {
      while (arrived.length === 0) await new Promise<void>((resolve) => (wake = resolve));
      return arrived.shift()!;
    },
    async [Symbol.asyncDispose]() {
      await tandem[Symbol.asyncDispose]();
      for (const one of [prefill, ...decodes]) await one[Symbol.asyncDispose]();
    },
  };
}

const replays = async ({ metrics }: Deployment, outcome: string): Promise<number> =>
  Number(new RegExp(`^tandem_replays_total\\{outcome="${outcome}"\\} (\\d+)$`, "m").exec(await metrics.text())?.[1]);

describe("a stream that breaks after its first byte", () => {
  it("goes on once another pair has repeated all that the client has, in pieces of any size", async () => {
    await using at = await scene();
    const { client, receipt, ending } = at.tandem.start(GREEDY);
    const broken = await at.next();
    broken.events("data: one\n\n");
    broken.events("data: two\n\ndata: three\n\n");
    await client.got(2);
    broken.fail("instance_lost");
    const again = await at.next();
    assert.notEqual(again.reserve.legId, broken.reserve.legId);
    assert.deepEqual(again.reserve.identity, broken.reserve.identity);
    again.events("data: one\n\ndata: two\n\n");
    again.events("data: three\n\ndata: four\n\n");
    await client.got(3);
    again.end({ completionTokens: 5 }, "data: five\n\n");
    assert.equal((await ending).completionTokens, 5);
    assert.equal(client.text, "data: one\n\ndata: two\n\ndata: three\n\ndata: four\n\ndata: five\n\n");
    assert.equal(client.started, 1);
    assert.deepEqual(receipt.fallbacks, ["replay:decode:instance_lost"]);
    assert.equal(receipt.legs.length, 2);
    assert.equal(await replays(at.tandem, "exact"), 1);
    await untilNoLegs(at.tandem);
  });

  it("goes on even if the next attempt breaks before it has caught up", async () => {
    await using at = await scene();
    const { client, receipt, ending } = at.tandem.start(GREEDY);
    const first = await at.next();
    first.events("data: one\n\ndata: two\n\n");
    await client.got(1);
    first.fail("instance_lost");
    const second = await at.next();
    second.events("data: one\n\n");
    second.fail("engine_failed");
    const third = await at.next();
    third.end({}, "data: one\n\ndata: two\n\ndata: three\n\n");
    await ending;
    assert.equal(client.text, "data: one\n\ndata: two\n\ndata: three\n\n");
    assert.deepEqual(receipt.fallbacks, ["replay:decode:instance_lost", "replay:decode:engine_failed"]);
  });

  for (const [what, write] of [
    ["other words", (leg: DecodeLeg) => leg.events("data: uno\n\ndata: two\n\n")],
    ["less than the client has", (leg: DecodeLeg) => leg.end({}, "data: one\n\n")],
  ] as const) {
    it(`ends with its first error when the other pair writes ${what}`, async () => {
      await using at = await scene();
      const { client, receipt, ending } = at.tandem.start(GREEDY);
      const broken = await at.next();
      broken.events("data: one\n\ndata: two\n\n");
      await client.got(1);
      broken.fail("instance_lost");
      write(await at.next());
      await assert.rejects(ending, { code: "instance_lost" });
      assert.equal(client.text, "data: one\n\ndata: two\n\n");
      assert.deepEqual(receipt.fallbacks, ["replay:decode:instance_lost", "replay:diverged"]);
      assert.equal(await replays(at.tandem, "diverged"), 1);
      await untilNoLegs(at.tandem);
    });
  }

  it("ends with its first error when the other pair takes too long, or every pair breaks", async () => {
    for (const outlast of [true, false]) {
      await using at = await scene({ replayTimeoutMs: outlast ? 100 : 10_000 });
      const { client, ending } = at.tandem.start(GREEDY);
      const broken = await at.next();
      broken.events("data: one\n\n");
      await client.got(1);
      broken.fail("kv_transfer_failed");
      for (let index = 0; index < (outlast ? 1 : 2); index += 1) {
        const again = await at.next();
        if (!outlast) again.fail("engine_failed");
      }
      await assert.rejects(ending, { code: "kv_transfer_failed" });
      assert.equal(await replays(at.tandem, "failed"), 1);
      await untilNoLegs(at.tandem);
    }
  });

  it("leaves the other choices of its request as they are", async () => {
    await using at = await scene();
    const { client, ending } = at.tandem.start({ ...GREEDY, choices: 2 });
    const legs = [await at.next(), await at.next()].sort(
      (a, b) => a.reserve.identity!.choiceIndex - b.reserve.identity!.choiceIndex,
    );
    legs[0]!.events("data: a1\n\n");
    await client.got(1);
    legs[1]!.events("data: b1\n\n");
    await client.got(2);
    legs[0]!.fail("instance_lost");
    const again = await at.next();
    assert.equal(again.reserve.identity!.choiceIndex, 0);
    legs[1]!.end({}, "data: b2\n\n");
    await client.got(3);
    again.end({}, "data: a1\n\ndata: a2\n\n");
    await ending;
    assert.equal(client.text, "data: a1\n\ndata: b1\n\ndata: b2\n\ndata: a2\n\n");
  });

  const refusals: readonly (readonly [string, Partial<RelayRequest>, Partial<RelayLimits>, string?])[] = [
    ["sampled without a seed", { repeatable: false }, {}],
    ["strict", { strict: true }, {}],
    ["with replays turned off", {}, { replayMode: "never" }],
    ["with retries turned off", {}, { retryLimit: 0 }],
    ["on engines of which nothing is proven", {}, {}, "vllm"],
    ["longer than it may take to write it again", {}, { replayTimeoutMs: 1 }],
  ];
  for (const [name, request, limits, engine] of refusals) {
    it(`ends with its error at once: ${name}`, async () => {
      const clock = manualClock();
      await using at = await scene(limits, engine, clock);
      const { client, receipt, ending } = at.tandem.start({ ...GREEDY, ...request });
      const broken = await at.next();
      broken.events("data: one\n\n");
      await client.got(1);
      clock.advance(5);
      broken.fail("instance_lost");
      await assert.rejects(ending, { code: "instance_lost" });
      assert.deepEqual([receipt.legs.length, receipt.fallbacks], [1, []]);
    });
  }

  it("is replayed on vLLM if the settings say so", async () => {
    await using at = await scene({ replayMode: "always" }, "vllm");
    const { client, ending } = at.tandem.start(GREEDY);
    const broken = await at.next();
    broken.events("data: one\n\n");
    await client.got(1);
    broken.fail("instance_lost");
    (await at.next()).end({}, "data: one\n\ndata: two\n\n");
    await ending;
    assert.equal(client.text, "data: one\n\ndata: two\n\n");
  });
});

describe("the digest of the bytes sent so far", () => {
  it("distinguishes every other text, in any pieces", () => {
    const text = Buffer.from("data: é\n\ndata: zwei\n\n");
    const more = Buffer.from("data: three\n\n");
    for (let cut = 0; cut <= text.length; cut += 1) {
      const sent = new SentSoFar();
      for (const piece of [text.subarray(0, cut), text.subarray(cut)]) assert.deepEqual(sent.pass(piece), piece);
      sent.repeat();
      const split = text.length - cut;
      const parts = [text.subarray(0, split), Buffer.concat([text.subarray(split), more])].map(
        (piece) => sent.pass(piece)!,
      );
      assert.equal(Buffer.concat(parts).toString(), more.toString());
      assert.equal(sent.repeating, false);
    }
    for (let at = 0; at < text.length; at += 1) {
      const sent = new SentSoFar();
      sent.pass(text);
      sent.repeat();
      const other = Buffer.from(text);
      other[at]! ^= 1;
      assert.equal(sent.pass(other), undefined);
    }
  });
});
