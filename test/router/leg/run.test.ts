// The runner of a leg, over instances in memory: what it says to whom, and in which order.
import assert from "node:assert/strict";
import { ServiceError } from "../../../services/common/errors.ts";
import { legLab, streaming } from "../support/leg-lab.ts";

describe("a leg", () => {
  it("calls the instances first, then updates the books, then tells its owner (decode first)", () => {
    const lab = legLab("p2p-nccl");
    lab.begin();
    assert.deepEqual(lab.said(), ["books +p1", "books +d1", "d1 reserve"]);
    lab.decodes[0]!.accept();
    assert.deepEqual(lab.said(), ["p1 prefill"]);
    lab.clock.advance(8);
    lab.prefills[0]!.done();
    assert.deepEqual(lab.said(), [
      "d1 start {}",
      "metrics prefill completed",
      "books -p1 good",
      "books p1 did 4 tokens in 8 ms",
    ]);
    lab.decodes[0]!.events();
    assert.deepEqual(lab.said(), ["owner events"]);
    lab.decodes[0]!.complete();
    assert.deepEqual(lab.said(), ["metrics decode completed", "books -d1 good", "books p1|d1 good", "owner completed"]);
    assert.equal(lab.live.size, 0);
    assert.equal(lab.clock.pending, 0);
  });

  it("has updated the books before its owner looks for another decode instance (prefill first)", () => {
    const lab = legLab("nixl");
    const leg = lab.begin();
    assert.deepEqual(lab.said(), ["books +p1", "p1 prefill"]);
    lab.prefills[0]!.done(4);
    assert.deepEqual(lab.said(), ["metrics prefill completed", "books -p1 good", "owner search"]);
    leg.decodeFound(lab.instance("d1"));
    assert.deepEqual(lab.said(), ["books +d1", "d1 reserve", "d1 start {}"]);
    lab.decodes[0]!.end("instance_busy");
    assert.deepEqual(lab.said(), [
      "metrics decode instance_busy",
      "books -d1 none",
      "owner search after instance_busy",
    ]);
    assert.equal(leg.decode!.info.instanceId, "d1", "the one that refused");
    leg.decodeFound(lab.instance("d2"));
    assert.deepEqual(lab.said(), ["books +d2", "d2 reserve", "d2 start {}"]);
  });

  it("records its times and tokens for the receipt", () => {
    const lab = legLab("nixl");
    const leg = lab.begin();
    const { draft } = leg.task;
    assert.equal(lab.live.size, 1);
    lab.clock.advance(8);
    lab.prefills[0]!.done(3);
    assert.deepEqual([draft.promptTokens, draft.cachedTokens, draft.kvBytes], [5, 3, 7n]);
    assert.equal(leg.prefillLogprob, -1);
    leg.decodeFound(lab.instance("d1"));
    lab.decodes[0]!.accept();
    lab.clock.advance(20);
    lab.decodes[0]!.events();
    lab.clock.advance(300);
    lab.decodes[0]!.complete({ promptTokens: 6, completionTokens: 9, cachedTokens: 4 });
    const { prefillInstanceId, decodeInstanceId, prefillMs, transferMs, decodeMs, completionTokens } = draft;
    assert.deepEqual([prefillInstanceId, decodeInstanceId], ["p1", "d1"]);
    assert.deepEqual([prefillMs, transferMs, decodeMs], [8, 20, 300]);
    assert.deepEqual([draft.promptTokens, completionTokens, draft.cachedTokens, draft.error], [6, 9, 4, ""]);
    assert.deepEqual(lab.completed, [draft]);
    assert.equal(leg.ended, true);
  });

  it("records its error, and the times of the parts that it reached", () => {
    const lab = legLab("nixl");
    const { draft } = lab.begin().task;
    lab.prefills[0]!.fail("engine_failed");
    assert.equal(draft.error, "engine_failed: Scripted engine_failed.");
    assert.deepEqual(lab.said().slice(2), [
      "metrics prefill engine_failed",
      "books -p1 bad",
      "owner prefill engine_failed",
    ]);
    assert.deepEqual([lab.completed.length, lab.clock.pending], [0, 0]);
  });

  it("fails when no decode instance is found for its ticket", () => {
    const lab = legLab("nixl");
    const leg = lab.begin();
    lab.prefills[0]!.done();
    lab.said();
    leg.noDecode(new ServiceError("no_instance", "None."));
    assert.deepEqual(lab.said(), ["owner transfer no_instance"]);
    assert.equal(lab.live.size, 0);
  });

  it("takes one event at a time, and holds no slot if it is given up while a decode instance is found", () => {
    const lab = legLab("nixl");
    const leg = lab.begin();
    lab.said();
    lab.onBooks = () => leg.unwanted();
    lab.onSearch = () => leg.decodeFound(lab.instance("d1"));
    lab.prefills[0]!.done();
    assert.deepEqual(lab.said().slice(0, 5), [
      "metrics prefill completed",
      "books -p1 good",
      "owner search",
      "owner ends the search",
      "owner cancelled",
    ]);
    assert.deepEqual([lab.live.size, lab.decodes.length], [0, 0]);
  });

  it("ends the search for a decode instance when it is given up, and holds no slot", () => {
    const lab = legLab("nixl");
    const leg = lab.begin();
    lab.prefills[0]!.done();
    lab.said();
    leg.unwanted();
    assert.deepEqual(lab.said(), ["owner ends the search", "owner cancelled"]);
    assert.equal(lab.live.size, 0);
  });

  it("releases a prefill instance that was never called, without an outcome", () => {
    const lab = legLab("p2p-nccl");
    lab.begin();
    lab.said();
    lab.decodes[0]!.end("instance_unavailable");
    assert.deepEqual(lab.said(), [
      "metrics decode instance_unavailable",
      "books -d1 bad",
      "books -p1 none",
      "owner reserve instance_unavailable",
    ]);
  });

  it("cancels a prefill that can be cancelled, and ignores its answer", () => {
    const lab = legLab("nixl");
    lab.begin().unwanted();
    assert.deepEqual(lab.said().slice(2), [
      "p1 cancel",
      "metrics prefill cancelled",
      "books -p1 none",
      "owner cancelled",
    ]);
    assert.equal(lab.clock.pending, 0, "nor waits for it");
  });

  it("settles prefill first and then the reservation after it was given up", () => {
    const lab = legLab("p2p-nccl");
    const leg = lab.begin();
    lab.decodes[0]!.accept();
    lab.said();
    leg.unwanted();
    assert.deepEqual(lab.said(), ["owner cancelled"]);
    assert.equal(leg.settling, true);
    lab.prefills[0]!.done();
    assert.deepEqual(lab.said().slice(0, 3), ["d1 abandon cancelled", "metrics prefill completed", "books -p1 good"]);
    lab.decodes[0]!.end("cancelled");
    assert.deepEqual(lab.said(), ["metrics decode cancelled", "books -d1 none"]);
    assert.equal(lab.live.size, 0);
  });

  it("delivers nothing more after it was abandoned during a delivery", () => {
    const lab = legLab("p2p-nccl");
    streaming(lab);
    lab.onDelivery = (leg) => leg.unwanted();
    lab.reading = false;
    lab.decodes[0]!.events();
    lab.decodes[0]!.events();
    assert.deepEqual(lab.said(), ["owner events", "d1 abandon cancelled", "owner cancelled"]);
    lab.decodes[0]!.complete();
    assert.deepEqual(lab.said(), ["metrics decode completed", "books -d1 good"]);
    assert.equal(lab.live.size, 0);
  });

  it("is cut if its instance does not end it after an abandon", () => {
    const lab = legLab("p2p-nccl");
    streaming(lab).unwanted();
    lab.said();
    lab.clock.advance(29_999);
    assert.deepEqual(lab.said(), []);
    lab.clock.advance(1);
    assert.deepEqual(lab.said(), ["d1 cut", "metrics decode cancelled", "books -d1 none"]);
    assert.equal(lab.live.size, 0);
  });

  it("fails if the instance ends the answer before the start", () => {
    const lab = legLab("p2p-nccl");
    lab.begin();
    lab.decodes[0]!.accept();
    lab.decodes[0]!.complete();
    assert.ok(lab.said().includes("owner prefill engine_failed"));
  });

  it("counts a cancel by the instance as a loss, unless the leg was abandoned", () => {
    const lab = legLab("p2p-nccl");
    streaming(lab);
    lab.decodes[0]!.end("cancelled");
    assert.deepEqual(lab.said(), ["metrics decode instance_lost", "books -d1 bad", "owner decode instance_lost"]);
  });
});
