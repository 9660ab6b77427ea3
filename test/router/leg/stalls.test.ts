// What a leg takes for a stall, by a clock, and whom it speaks against.
import assert from "node:assert/strict";
import { type Lab, legLab, streaming } from "../support/leg-lab.ts";

/** A leg, prefill first, that has started on `d1`. */
function transferring(lab: Lab, o: Parameters<Lab["begin"]>[0] = {}) {
  const leg = lab.begin(o);
  if (o.unpaired !== true) lab.prefills.at(-1)!.done();
  leg.decodeFound(o.decode ?? lab.instance("d1"));
  lab.decodes.at(-1)!.accept();
  lab.said();
  return leg;
}

describe("an answer in one piece whose tokens are reported", () => {
  const limits = { transferTimeoutMs: 2_000, stallMs: 1_000 };
  const cut = ["d1 cut", "metrics decode leg_stalled"];

  const asked = (o: Parameters<Lab["begin"]>[0] = {}): Lab => {
    const lab = legLab("p2p-zmq", limits);
    lab.begin({ request: { stream: false }, ...o });
    lab.decodes[0]!.accept(true);
    if (o.unpaired !== true) lab.prefills[0]!.done();
    lab.said();
    return lab;
  };

  it("must bring its first one and each further one as soon as a stream must", () => {
    const late = asked();
    late.clock.advance(1_999);
    assert.deepEqual(late.said(), []);
    late.clock.advance(1);
    assert.deepEqual(late.said().slice(0, 2), cut);
    const lab = asked();
    lab.clock.advance(1_999);
    lab.decodes[0]!.tokens();
    for (let count = 0; count < 20; count += 1) {
      lab.clock.advance(999);
      lab.decodes[0]!.tokens();
    }
    assert.deepEqual(lab.said(), []);
    lab.clock.advance(1_000);
    assert.deepEqual(lab.said().slice(0, 2), cut);
    assert.match((lab.outcomes[0] as { error: Error }).error.message, /sent nothing for 1000 ms/);
  });

  it("is completed by its body, and its receipt says when the first token came", () => {
    const lab = asked();
    lab.clock.advance(30);
    lab.decodes[0]!.tokens();
    lab.clock.advance(70);
    lab.decodes[0]!.events("{}");
    lab.decodes[0]!.complete();
    assert.deepEqual([lab.completed[0]!.transferMs, lab.completed[0]!.decodeMs], [30, 70]);
  });
});

describe("a stream of tokens", () => {
  it("sets no timer per token, and fails when the tokens stop", () => {
    const lab = legLab("p2p-nccl", { stallMs: 1_000 });
    streaming(lab);
    const before = lab.timersSet;
    for (let count = 0; count < 10_000; count += 1) {
      lab.clock.advance(0.5);
      lab.decodes[0]!.events();
    }
    assert.ok(lab.timersSet - before <= 6, `${lab.timersSet - before} timers in 5 s`);
    assert.equal(lab.clock.pending, 1);
    lab.said();
    lab.clock.advance(999);
    assert.deepEqual(lab.said(), []);
    lab.clock.advance(1);
    assert.deepEqual(lab.said(), [
      "d1 cut",
      "metrics decode leg_stalled",
      "books -d1 wedged",
      "owner decode leg_stalled",
    ]);
    assert.match((lab.outcomes[0] as { error: Error }).error.message, /sent nothing for 1000 ms .*decode 6000 ms/);
  });

  it("does not stall while its client holds it back, and has its full bound again afterwards", () => {
    const lab = legLab("p2p-nccl", { stallMs: 1_000 });
    const leg = streaming(lab);
    lab.reading = false;
    lab.decodes[0]!.events();
    assert.deepEqual(lab.said(), ["owner events", "d1 pause"]);
    lab.clock.advance(60_300);
    lab.reading = true;
    leg.resume();
    leg.resume();
    assert.deepEqual(lab.said(), ["d1 resume"]);
    lab.clock.advance(999);
    assert.deepEqual(lab.said(), []);
    lab.clock.advance(1);
    assert.ok(lab.said().includes("owner decode leg_stalled"));
  });

  it("counts the gaps between its tokens, except those that a slow client caused", () => {
    const lab = legLab("p2p-nccl");
    const leg = streaming(lab);
    lab.clock.advance(5);
    lab.decodes[0]!.events();
    lab.clock.advance(7);
    lab.reading = false;
    lab.decodes[0]!.events();
    lab.clock.advance(500);
    lab.reading = true;
    leg.resume();
    lab.decodes[0]!.events();
    lab.clock.advance(3);
    lab.decodes[0]!.events();
    assert.deepEqual(lab.itlMs, [5, 7, 3]);
  });
});

describe("an instance that does not answer", () => {
  it("is given up for a reservation after its bound, which speaks against it", () => {
    for (const connector of ["p2p-nccl", "nixl"] as const) {
      const lab = legLab(connector);
      const leg = lab.begin();
      if (connector === "nixl") {
        lab.prefills[0]!.done();
        leg.decodeFound(lab.instance("d1"));
      }
      lab.said();
      lab.clock.advance(1_999);
      assert.deepEqual(lab.said(), []);
      lab.clock.advance(1);
      const said = lab.said();
      assert.deepEqual(said.slice(0, 3), ["d1 cut", "metrics decode leg_stalled", "books -d1 wedged"]);
      assert.equal(said.at(-1), "owner reserve leg_stalled");
      assert.ok(!said.some((text) => text.startsWith("books p1|d1")), "nothing was transferred yet");
    }
  });

  it("is given up for a prefill after its bound; if it pushes KV, that speaks only against the pair", () => {
    const pushed = legLab("p2p-zmq", { prefillTimeoutMs: 3_000 });
    pushed.begin();
    pushed.decodes[0]!.accept();
    pushed.said();
    pushed.clock.advance(2_999);
    assert.deepEqual(pushed.said(), []);
    pushed.clock.advance(1);
    assert.deepEqual(pushed.said(), [
      "p1 cancel",
      "d1 abandon leg_stalled",
      "metrics prefill leg_stalled",
      "books -p1 none",
      "books p1|d1 wedged",
      "owner prefill leg_stalled",
    ]);
    const pulled = legLab("nixl", { prefillTimeoutMs: 3_000 });
    pulled.begin();
    pulled.said();
    pulled.clock.advance(3_000);
    assert.deepEqual(pulled.said(), [
      "p1 cancel",
      "metrics prefill leg_stalled",
      "books -p1 wedged",
      "owner prefill leg_stalled",
    ]);
  });

  it("is given up for a prefill sooner where its rate is known, by the tokens that wait before it", () => {
    const lab = legLab("nixl", { prefillTimeoutMs: 60_000, prefillFloorMs: 1_000, prefillSlack: 2 });
    const figures = { tokensPerMs: 0.01, load: { queuedTokens: 4 }, placedTokens: 6 };
    lab.begin({ prefill: Object.assign(lab.instance("p1"), figures) });
    lab.said();
    lab.clock.advance(2_999);
    assert.deepEqual(lab.said(), []);
    lab.clock.advance(1);
    assert.ok(lab.said().includes("owner prefill leg_stalled"));
  });

  it("is given up for a prefill even after the answer was given up, and then the reservation is settled", () => {
    const lab = legLab("p2p-zmq", { prefillTimeoutMs: 3_000 });
    const leg = lab.begin();
    lab.decodes[0]!.accept();
    leg.unwanted();
    lab.said();
    lab.clock.advance(3_000);
    assert.deepEqual(lab.said(), [
      "p1 cancel",
      "d1 abandon cancelled",
      "metrics prefill leg_stalled",
      "books -p1 none",
    ]);
  });
});

describe("a wait for KV", () => {
  const limits = { transferTimeoutMs: 5_000 };
  const late = [
    "d1 cut",
    "metrics decode leg_stalled",
    "books -d1 none",
    "books p1|d1 wedged",
    "owner transfer leg_stalled",
  ];

  it("has the connector's bound for the first transfer of two engines, and the usual one afterwards", () => {
    const lab = legLab("nixl", limits);
    transferring(lab);
    lab.clock.advance(59_999);
    assert.deepEqual(lab.said(), [], "a handshake of 12 to 19 s is no stall");
    lab.decodes.at(-1)!.events();
    lab.decodes.at(-1)!.complete();
    assert.ok(lab.said().includes("books p1|d1 good"));
    transferring(lab);
    lab.clock.advance(4_999);
    assert.deepEqual(lab.said(), []);
    lab.clock.advance(1);
    assert.deepEqual(lab.said(), late);
  });

  it("beyond its bound speaks against the pair and not against the instance, also for a first transfer", () => {
    const lab = legLab("nixl", limits);
    transferring(lab);
    lab.clock.advance(60_000);
    assert.deepEqual(lab.said(), late);
    assert.match((lab.outcomes[0] as { error: Error }).error.message, /No token came after prefill for 60000 ms/);
  });

  it("has the first bound again after a restart of either engine, after a failed transfer, and with another partner", () => {
    const lab = legLab("nixl", limits);
    const works = (o: Parameters<Lab["begin"]>[0] = {}): void => {
      transferring(lab, o);
      lab.decodes.at(-1)!.events();
      lab.decodes.at(-1)!.complete();
      lab.said();
    };
    const waitsLong = (o: Parameters<Lab["begin"]>[0] = {}): void => {
      transferring(lab, o);
      lab.clock.advance(59_999);
      assert.deepEqual(lab.said(), []);
      lab.clock.advance(1);
      assert.ok(lab.said().includes("owner transfer leg_stalled"));
    };
    for (const restarted of ["p1", "d1"]) {
      works();
      lab.pairs.cool(restarted, lab.clock.nowMs());
      waitsLong();
    }
    works();
    waitsLong({ prefill: lab.instance("p2") });
    transferring(lab);
    lab.clock.advance(5_000);
    assert.deepEqual(lab.said(), late);
    waitsLong();
  });

  it("adds the time of the first transfer to the bound of a non-streaming answer", () => {
    const lab = legLab("nixl", { transferTimeoutMs: 400, stallMs: 200 });
    const decode = lab.instance("d1"); // The pace is that of this object.
    const ask = (): void => void transferring(lab, { decode, request: { stream: false, maxTokens: 20 } });
    ask();
    lab.clock.advance(40);
    lab.decodes.at(-1)!.events("{}");
    lab.decodes.at(-1)!.complete({ completionTokens: 20 });
    ask();
    lab.said();
    // 20 tokens at 2 ms each, ten times over, and what a stream may be silent for.
    lab.clock.advance(999);
    assert.deepEqual(lab.said(), []);
    lab.clock.advance(1);
    assert.deepEqual(lab.said(), late);
    ask();
    lab.said();
    lab.clock.advance(60_999);
    assert.deepEqual(lab.said(), []);
    lab.clock.advance(1);
    assert.deepEqual(lab.said(), late);
  });

  it("is part of prefill where prefill pushes the KV", () => {
    const lab = legLab("p2p-nccl", { prefillTimeoutMs: 3_000 });
    lab.begin();
    lab.decodes[0]!.accept();
    lab.said();
    lab.clock.advance(12_999);
    assert.deepEqual(lab.said(), []);
    lab.clock.advance(1);
    assert.ok(lab.said().includes("books p1|d1 wedged"));
  });

  it("does not exist if decode computes the prompt: then the instance has stalled", () => {
    const lab = legLab("nixl", limits);
    transferring(lab, { unpaired: true });
    lab.clock.advance(5_000);
    assert.deepEqual(lab.said(), [
      "d1 cut",
      "metrics decode leg_stalled",
      "books -d1 bad",
      "owner transfer leg_stalled",
    ]);
  });
});
