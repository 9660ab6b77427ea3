// The relay over real gRPC, against instances that the test scripts: the two orders, busy instances and retries.
import assert from "node:assert/strict";
import { manualClock } from "../../support/manual-clock.ts";
import { within } from "../../support/waits.ts";
import { deploy, untilNoLegs } from "../support/deployment.ts";
import { startDecode, startPrefill, twoTokens } from "../support/fake-instance.ts";
import type { PrefillLeg } from "../support/fake-instance.ts";
import { untilStanding } from "../support/pool-waits.ts";

const TOKENS = 'data: {"choices":[{"index":0,"text":"a"}]}\n\ndata: {"choices":[{"index":0,"text":"b"}]}\n\n';
const done = (leg: PrefillLeg): void => leg.done({ cachedTokens: 3, kvBytes: 1024n });

describe("a request, decode first", () => {
  it("reserves, prefills, starts and streams", async () => {
    await using prefill = await startPrefill({ kvAddress: "127.0.0.1:20001" });
    await using decode = await startDecode({ kvAddress: "127.0.0.1:21001" });
    await using tandem = await deploy([prefill, decode]);
    const { client, receipt, ending } = tandem.start({ body: Buffer.from('{"prompt":"é"}') });

    const held = await decode.legs.next("the reservation");
    assert.equal(prefill.legs.all.length, 0);
    assert.equal(held.reserve.body, '{"prompt":"é"}');
    assert.equal(held.reserve.path, "/v1/completions");
    assert.equal(held.reserve.prefillKvAddress, "127.0.0.1:20001");
    assert.equal(held.reserve.prefillGrpcAddress, prefill.info.grpcAddress);
    assert.equal(held.reserve.promptIndex, undefined);
    const { id, created, choiceIndex, sampleIndex } = held.reserve.identity!;
    assert.deepEqual(
      { id, created, choiceIndex, sampleIndex },
      { id: receipt.requestId, created: 7, choiceIndex: 0, sampleIndex: 0 },
    );
    held.accept();

    const leg = await prefill.legs.next("the prefill");
    assert.match(leg.request.legId, /^[0-9a-f]{32}$/);
    assert.equal(leg.request.legId, held.reserve.legId);
    assert.equal(leg.request.decodeKvAddress, "127.0.0.1:21001");
    assert.equal(leg.request.body, '{"prompt":"é"}');
    assert.deepEqual(held.seen, ["reserve"]);
    leg.done({ ticket: "{}", cachedTokens: 3, kvBytes: 1024n });

    const start = await held.started.promise;
    assert.equal(start.ticket, "{}");
    assert.equal(start.cachedTokens, 3);
    assert.equal(client.started, 0);
    held.events("data: 1\n\n");
    await client.got(1);
    assert.equal(client.started, 1);
    held.end({ promptTokens: 5, completionTokens: 2, cachedTokens: 3 }, "data: 2\n\n");

    assert.deepEqual(await ending, { finishReasons: ["stop"], promptTokens: 5, completionTokens: 2, cachedTokens: 3 });
    assert.equal(client.text, "data: 1\n\ndata: 2\n\n");
    assert.equal(receipt.legs.length, 1);
    const [draft] = receipt.legs;
    const { startedMs, reserveMs, prefillMs, transferMs, decodeMs, ...facts } = draft!;
    assert.deepEqual(facts, {
      legId: held.reserve.legId,
      choiceIndex: 0,
      prefillInstanceId: "p1",
      decodeInstanceId: "d1",
      error: "",
      promptTokens: 5,
      completionTokens: 2,
      cachedTokens: 3,
      kvBytes: 1024n,
    });
    for (const ms of [startedMs, reserveMs, prefillMs, transferMs, decodeMs]) assert.ok(ms > 0);
    assert.deepEqual(receipt.fallbacks, []);
    await untilNoLegs(tandem);
    const metrics = await tandem.metrics.text();
    assert.match(metrics, /tandem_legs_total\{leg="prefill",outcome="completed"\} 1/);
    assert.match(metrics, /tandem_legs_total\{leg="decode",outcome="completed"\} 1/);
    assert.match(metrics, /tandem_kv_transfer_bytes_total 1024/);
  });

  it("delivers a non-streaming body whole", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode({}, (leg) => {
      leg.accept();
      void leg.started.promise.then(() => leg.end({}, '{"choices":[]}'));
    });
    await using tandem = await deploy([prefill, decode]);
    const { client, ending } = tandem.start({ stream: false });
    await ending;
    assert.deepEqual(client.chunks, ['{"choices":[]}']);
    assert.equal(client.started, 1);
  });

  it("starts an answer without bytes too", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode({}, (leg) => {
      leg.accept();
      void leg.started.promise.then(() => leg.end({ completionTokens: 0 }));
    });
    await using tandem = await deploy([prefill, decode]);
    const { client, ending } = tandem.start();
    assert.equal((await ending).completionTokens, 0);
    assert.equal(client.started, 1);
  });

  it("does not count a busy decode instance as a failure, and asks another", async () => {
    await using prefill = await startPrefill({}, done);
    await using full = await startDecode({ instanceId: "d1" }, (leg) => leg.fail("instance_busy"));
    await using free = await startDecode({ instanceId: "d2" }, twoTokens);
    await using tandem = await deploy([prefill, full, free], { limits: { retryLimit: 0 } });
    const { client, receipt, ending } = tandem.start();
    await ending;
    assert.equal(client.text, TOKENS);
    assert.deepEqual(receipt.fallbacks, ["busy:decode"]);
    assert.equal(prefill.legs.all.length, 1);
    assert.notEqual(full.legs.all[0]!.reserve.legId, free.legs.all[0]!.reserve.legId);
  });

  it("waits while all decode instances are busy, and goes on with the first free slot", async () => {
    await using prefill = await startPrefill({}, done);
    let room = false;
    await using decode = await startDecode({}, (leg) => (room ? twoTokens(leg) : leg.fail("instance_busy")));
    await using tandem = await deploy([prefill, decode]);
    const { client, ending } = tandem.start();
    await decode.legs.next("the refused reservation");
    await untilNoLegs(tandem);
    const seen = new Promise<void>((resolve) => tandem.pool.onChange(() => resolve()));
    decode.load({ freeSlots: 0 });
    await seen;
    assert.equal(decode.legs.all.length, 1);
    room = true;
    decode.load({ freeSlots: 1 });
    await ending;
    assert.equal(client.text, TOKENS);
    assert.equal(decode.legs.all.length, 2);
  });

  it("gives up the wait for a slot after the queue's timeout", async () => {
    const clock = manualClock();
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode({}, (leg) => leg.fail("instance_busy"));
    await using tandem = await deploy([prefill, decode], { clock, queueTimeoutMs: 5_000 });
    const { ending } = tandem.start();
    await decode.legs.next("the refused reservation");
    await untilNoLegs(tandem);
    clock.advance(5_500);
    await assert.rejects(ending, { code: "instance_busy", retryAfterS: 1 });
  });

  it("abandons the reservation when prefill fails, and tries another pair with a fresh id", async () => {
    await using bad = await startPrefill({ instanceId: "p1" }, (leg) => leg.fail("kv_transfer_failed"));
    await using good = await startPrefill({ instanceId: "p2" }, done);
    await using decode = await startDecode({}, twoTokens);
    await using tandem = await deploy([bad, good, decode]);
    const { client, receipt, ending } = tandem.start();
    await ending;
    assert.equal(client.text, TOKENS);
    const [first, second] = decode.legs.all;
    assert.equal((await within(first!.abandoned.promise, "the abandon")).nothingSent, false);
    assert.notEqual(first!.reserve.legId, second!.reserve.legId);
    assert.deepEqual(receipt.fallbacks, ["retry:prefill:kv_transfer_failed"]);
    assert.match(receipt.legs[0]!.error, /^kv_transfer_failed/);
    assert.equal(receipt.legs[1]!.error, "");
    first!.close();
    await untilNoLegs(tandem);
    assert.match(await tandem.metrics.text(), /tandem_retries_total\{reason="kv_transfer_failed"\} 1/);
  });

  it("says in the abandon that prefill has sent nothing, if that is certain", async () => {
    await using prefill = await startPrefill({}, (leg) => leg.fail("engine_refused"));
    await using decode = await startDecode({}, (leg) => leg.accept());
    await using tandem = await deploy([prefill, decode]);
    const { client, ending } = tandem.start();
    await assert.rejects(ending, { code: "engine_refused" });
    assert.equal(client.started, 0);
    assert.equal((await within(decode.legs.all[0]!.abandoned.promise, "the abandon")).nothingSent, true);
    assert.equal(decode.legs.all.length, 1);
  });

  it("does not retry if retries are off", async () => {
    await using prefill = await startPrefill({}, (leg) => leg.fail("kv_transfer_failed"));
    await using decode = await startDecode({}, (leg) => leg.accept());
    await using tandem = await deploy([prefill, decode], { limits: { retryLimit: 0 } });
    await assert.rejects(tandem.start().ending, { code: "kv_transfer_failed" });
    assert.equal(prefill.legs.all.length, 1);
  });

  it("retries when decode is lost before its first byte", async () => {
    await using prefill = await startPrefill({}, done);
    await using bad = await startDecode({ instanceId: "d1" }, (leg) => {
      leg.accept();
      void leg.started.promise.then(() => leg.fail("engine_failed"));
    });
    await using good = await startDecode({ instanceId: "d2" }, twoTokens);
    await using tandem = await deploy([prefill, bad, good]);
    const { client, receipt, ending } = tandem.start();
    await ending;
    assert.equal(client.text, TOKENS);
    assert.deepEqual(receipt.fallbacks, ["retry:transfer:engine_failed"]);
    assert.equal(prefill.legs.all.length, 2);
  });

  it("fails with a typed error and without a retry when decode is lost in mid-stream", async () => {
    await using prefill = await startPrefill({}, done);
    const decode = await startDecode({ instanceId: "d1" });
    await using other = await startDecode({ instanceId: "d2", model: "tiny", blockSize: 1 });
    await using tandem = await deploy([prefill, decode]);
    const { client, ending, receipt } = tandem.start();
    const leg = (await decode.legs.next("the reservation")).accept();
    await leg.started.promise;
    leg.events("data: 1\n\n");
    await client.got(1);
    await decode[Symbol.asyncDispose]();
    await assert.rejects(ending, { code: "instance_lost" });
    assert.equal(client.text, "data: 1\n\n");
    assert.equal(other.legs.all.length, 0);
    assert.deepEqual(receipt.fallbacks, []);
  });

  it("fails with a typed error when the answer stops before its end", async () => {
    await using prefill = await startPrefill({}, done);
    await using decode = await startDecode();
    await using tandem = await deploy([prefill, decode]);
    const { client, ending } = tandem.start();
    const leg = (await decode.legs.next("the reservation")).accept();
    await leg.started.promise;
    leg.events("data: 1\n\n");
    await client.got(1);
    leg.close();
    await assert.rejects(ending, { code: "engine_failed" });
  });
});

describe("a request, prefill first", () => {
  const nixl = { connector: "nixl", kvAddress: "" };

  it("prefills, then reserves and starts together with the ticket", async () => {
    await using prefill = await startPrefill({ ...nixl }, (leg) => leg.done({ ticket: '{"remote":1}' }));
    await using decode = await startDecode({ ...nixl }, twoTokens);
    await using tandem = await deploy([prefill, decode]);
    const { client, receipt, ending } = tandem.start();
    await ending;
    assert.equal(client.text, TOKENS);
    assert.equal(prefill.legs.all[0]!.request.decodeKvAddress, "");
    const [leg] = decode.legs.all;
    assert.equal(leg!.reserve.prefillKvAddress, "");
    assert.equal((await leg!.started.promise).ticket, '{"remote":1}');
    assert.equal(receipt.legs[0]!.reserveMs, 0);
    assert.ok(receipt.legs[0]!.transferMs > 0);
  });

  it("takes the same ticket to another decode instance when one is busy", async () => {
    await using prefill = await startPrefill({ ...nixl }, (leg) => leg.done({ ticket: '{"remote":1}' }));
    await using full = await startDecode({ ...nixl, instanceId: "d1" }, (leg) => leg.fail("instance_busy"));
    await using free = await startDecode({ ...nixl, instanceId: "d2" }, twoTokens);
    await using tandem = await deploy([prefill, full, free], { limits: { retryLimit: 0 } });
    const { client, receipt, ending } = tandem.start();
    await ending;
    assert.equal(client.text, TOKENS);
    assert.equal(prefill.legs.all.length, 1);
    assert.equal((await free.legs.all[0]!.started.promise).ticket, '{"remote":1}');
    assert.equal(receipt.legs[0]!.decodeInstanceId, "d2");
    assert.deepEqual(receipt.fallbacks, ["busy:decode"]);
  });

  it("cancels prefill when its client leaves, and opens no decode leg", async () => {
    await using prefill = await startPrefill({ ...nixl });
    await using decode = await startDecode({ ...nixl });
    await using tandem = await deploy([prefill, decode]);
    const { gone, ending } = tandem.start();
    const leg = await prefill.legs.next("the prefill");
    gone.abort();
    await assert.rejects(ending, { code: "cancelled" });
    await within(leg.cancelled.promise, "the cancel");
    await untilNoLegs(tandem);
    assert.equal(decode.legs.all.length, 0);
  });

  it("ends the search for a decode instance when its client leaves", async () => {
    await using prefill = await startPrefill({ ...nixl }, done);
    await using decode = await startDecode({ ...nixl }, (leg) => leg.fail("instance_busy"));
    await using tandem = await deploy([prefill, decode]);
    const { gone, ending } = tandem.start();
    await decode.legs.next("the refused leg");
    gone.abort();
    await assert.rejects(ending, { code: "cancelled" });
    await untilNoLegs(tandem);
    decode.load({ freeSlots: 9, running: 1 });
    await untilStanding(tandem.pool, "d1", "serves");
    assert.equal(decode.legs.all.length, 1);
  });
});
