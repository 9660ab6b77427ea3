// The runner of a leg, over instances in memory: what it says to whom, and in which order.
import assert from "node:assert/strict";
import { ServiceError } from "../../../services/common/errors.ts";
import { type Lab, legLab, streaming } from "../support/leg-lab.ts";

/** What `said` leaves out as well, from now on. */
function wordsOf(lab: Lab): string[] {
  const words: string[] = [];
  lab.onWord = (word) => words.push(word);
  return words;
}

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
    assert.equal(leg.task.draft.error, "cancelled");
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

  it("tells its owner once that the answer has begun, before the first events", () => {
    const lab = legLab("p2p-nccl");
    const words = wordsOf(lab);
    lab.begin();
    lab.decodes[0]!.accept();
    lab.prefills[0]!.done();
    assert.ok(!words.includes("owner began"));
    lab.decodes[0]!.events();
    lab.decodes[0]!.events();
    assert.deepEqual(
      words.filter((word) => word.startsWith("owner")),
      ["owner began", "owner events", "owner events"],
    );
  });

  it("has left the live legs when it tells that it has ended, once", () => {
    const lab = legLab("p2p-nccl");
    const leg = streaming(lab);
    const words = wordsOf(lab);
    leg.unwanted();
    assert.ok(!words.some((word) => /leg ended/.test(word)), "it settles");
    lab.decodes[0]!.end("cancelled");
    lab.decodes[0]!.end("cancelled");
    assert.deepEqual(
      words.filter((word) => /leg ended/.test(word)),
      ["a leg ended, 0 live"],
    );
  });

  it("counts the prompt's tokens on prefill, and holds a slot on each decode instance in turn", () => {
    const lab = legLab("nixl");
    const words = wordsOf(lab);
    const leg = lab.begin();
    assert.deepEqual(words.slice(0, 2), ["books +p1", "for 4 tokens"]);
    lab.prefills[0]!.done();
    for (const id of ["d1", "d2"]) {
      leg.decodeFound(lab.instance(id));
      assert.equal(leg.task.draft.decodeInstanceId, id);
      lab.decodes.at(-1)!.end("instance_busy");
    }
    leg.unwanted();
    const books = lab.said().filter((text) => /^books .d/.test(text));
    assert.deepEqual(books, ["books +d1", "books -d1 none", "books +d2", "books -d2 none"]);
  });

  it("goes on after its owner threw", () => {
    const lab = legLab("nixl");
    const leg = lab.begin();
    lab.onSearch = () => assert.fail("a fault of the owner");
    assert.throws(() => lab.prefills[0]!.done());
    lab.said();
    leg.unwanted();
    assert.deepEqual(lab.said(), ["owner ends the search", "owner cancelled"]);
  });

  it("knows where its time went, and what it waits for", () => {
    const lab = legLab("p2p-nccl");
    const leg = lab.begin();
    const waitsFor = (): unknown => leg.wait && [leg.wait.part, leg.wait.on.instanceId];
    lab.clock.advance(2);
    assert.deepEqual([leg.where(), waitsFor()], ["reserve 2 ms", ["reserve", "d1"]]);
    lab.decodes[0]!.accept();
    lab.clock.advance(30);
    assert.deepEqual([leg.where(), waitsFor()], ["reserve 2 ms, prefill 30 ms", ["prefill", "p1"]]);
    lab.prefills[0]!.done(3);
    lab.clock.advance(4);
    assert.deepEqual([leg.where(), waitsFor()], ["reserve 2 ms, prefill 30 ms, transfer 4 ms", ["transfer", "d1"]]);
    lab.decodes[0]!.events();
    lab.clock.advance(5);
    const whole = "reserve 2 ms, prefill 30 ms, transfer 4 ms, decode 5 ms";
    assert.deepEqual([leg.where(), waitsFor()], [whole, undefined]);
    lab.decodes[0]!.complete();
    const { reserveMs, decodeMs, cachedTokens } = leg.task.draft;
    assert.deepEqual([reserveMs, decodeMs, cachedTokens], [2, 5, 3], "the cached tokens that prefill reported");
  });

  it("has spent no time on parts that it did not reach, nor has an unpaired one on prefill", () => {
    const lab = legLab("nixl");
    const leg = lab.begin({ unpaired: true });
    leg.decodeFound(lab.instance("d1"));
    lab.clock.advance(7);
    assert.equal(leg.where(), "transfer 7 ms");
    leg.unwanted();
    assert.deepEqual([leg.task.draft.prefillMs, leg.task.draft.decodeMs], [0, 0]);
  });

  it("gives both instances the addresses of the other, where the connector pairs by them", () => {
    const told = (connector: "nixl" | "p2p-nccl", unpaired = false): string[] => {
      const lab = legLab(connector);
      const leg = lab.begin({ unpaired });
      if (connector === "p2p-nccl") lab.decodes[0]!.accept();
      lab.prefills[0]?.done();
      if (connector === "nixl") leg.decodeFound(lab.instance("d1"));
      const { prefillGrpcAddress, prefillInstanceId, ...decode } = lab.decodes[0]!.reservation;
      const of = (words: { prefillKvAddress: string; decodeKvAddress: string }): string =>
        `${words.prefillKvAddress} ${words.decodeKvAddress}`;
      const { order } = lab.prefills[0] ?? {};
      return [order === undefined ? "" : of(order), of(decode), prefillGrpcAddress, prefillInstanceId];
    };
    assert.deepEqual(told("p2p-nccl"), ["p1:1 d1:1", "p1:1 d1:1", "p1:2", "p1"]);
    assert.deepEqual(told("nixl"), [" ", " ", "p1:2", "p1"]);
    assert.deepEqual(told("nixl", true), ["", " ", "", ""]);
  });

  it("is cut and fails, which speaks against its instance, if its answer can't be passed on", () => {
    const lab = legLab("p2p-nccl");
    streaming(lab);
    lab.decodes[0]!.events("data: half");
    assert.deepEqual(lab.said(), [
      "d1 cut",
      "metrics decode engine_failed",
      "books -d1 bad",
      "owner decode engine_failed",
    ]);
    assert.equal(lab.clock.pending, 0);
  });

  it("speaks against an instance that is lost while it settles", () => {
    const lab = legLab("p2p-nccl");
    streaming(lab).unwanted();
    lab.said();
    lab.decodes[0]!.end("instance_lost");
    assert.deepEqual(lab.said(), ["metrics decode instance_lost", "books -d1 bad"]);
    assert.equal(lab.clock.pending, 0);
  });
});

describe("a leg that another attempt has outrun", () => {
  /** What the books say of an attempt that was outrun. */
  const blamed = (lab: Lab): string[] => lab.said().filter((text) => /^books (?![-+])/.test(text));

  it("is cancelled, says so in its receipt, and speaks against the instance if that was late", () => {
    for (const [ms, wanted] of [
      [999, []],
      [1_100, ["books d1 outrun"]],
    ] as const) {
      const lab = legLab("p2p-zmq");
      const leg = lab.begin();
      lab.clock.advance(ms);
      leg.outrun();
      assert.deepEqual(blamed(lab), wanted);
      assert.deepEqual(lab.outcomes, [{ kind: "cancelled" }]);
      assert.equal(leg.task.draft.error, "cancelled: another attempt answered first");
    }
  });

  it("speaks against the pair if its partner may have held prefill up", () => {
    const lab = legLab("p2p-nccl");
    const leg = lab.begin();
    lab.decodes[0]!.accept();
    lab.clock.advance(11_100);
    lab.said();
    leg.outrun();
    assert.deepEqual(blamed(lab), ["books p1|d1 wedged"]);
  });

  it("speaks against no pair while it has one instance", () => {
    const lab = legLab("nixl");
    const [prefill, decode] = [lab.instance("p1"), lab.instance("d1")];
    const early = lab.begin({ prefill });
    const unpaired = [lab.begin({ unpaired: true }), lab.begin({ unpaired: true })];
    lab.begin({ prefill });
    for (const leg of unpaired) leg.decodeFound(decode);
    for (const one of lab.decodes) one.accept();
    lab.clock.advance(1_100);
    // Both instances have brought another leg forward.
    lab.prefills[1]!.done();
    lab.decodes[1]!.events();
    lab.clock.advance(5_000);
    lab.said();
    early.outrun();
    unpaired[0]!.outrun();
    assert.deepEqual(blamed(lab), []);
  });

  it("speaks against nothing once its answer had begun", () => {
    const lab = legLab("p2p-zmq");
    const leg = streaming(lab);
    lab.clock.advance(5_000);
    leg.outrun();
    assert.deepEqual(blamed(lab), []);
  });
});
