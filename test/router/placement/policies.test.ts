import assert from "node:assert/strict";
import { POLICY_NAMES } from "../../../services/router/config.ts";
import { Picker } from "../../../services/router/placement/policies.ts";
import type { Candidate } from "../../../services/router/placement/policies.ts";

function candidate(instanceId: string, figures: Partial<Candidate> = {}): Candidate {
  return {
    instanceId,
    legs: 0,
    queuedTokens: 0,
    running: 0,
    freeSlots: 8,
    ...figures,
  };
}

const picks = (picker: Picker, candidates: readonly Candidate[], count: number): string =>
  Array.from({ length: count }, () => picker.pick(candidates).instanceId).join("");

describe("every policy", () => {
  for (const name of POLICY_NAMES) {
    it(`${name}: picks the only candidate`, () => {
      assert.equal(new Picker(() => name).pick([candidate("a")]).instanceId, "a");
    });
    it(`${name}: spreads a burst over equals, however stale the figures`, () => {
      assert.equal(picks(new Picker(() => name), [candidate("a"), candidate("b"), candidate("c")], 6), "abcabc");
    });
    it(`${name}: takes turns for prefill and decode separately`, () => {
      const pair = [candidate("a"), candidate("b")];
      const prefill = new Picker(() => name);
      const decode = new Picker(() => name);
      assert.equal(picks(prefill, pair, 1) + picks(decode, pair, 1), "aa");
    });
  }
});

describe("round-robin", () => {
  it("continues its turns when an instance leaves and another joins", () => {
    const picker = new Picker(() => "round-robin");
    assert.equal(picks(picker, [candidate("a"), candidate("b"), candidate("c")], 2), "ab");
    assert.equal(picks(picker, [candidate("a"), candidate("c"), candidate("d")], 3), "cda");
  });
  it("ignores load", () => {
    const busy = candidate("a", { queuedTokens: 9_000, running: 9, legs: 9 });
    assert.equal(picks(new Picker(() => "round-robin"), [busy, candidate("b")], 4), "abab");
  });
});

describe("least-load", () => {
  it("compares waiting prompt tokens before legs", () => {
    const oneLong = candidate("a", { queuedTokens: 32_000, running: 1, legs: 1 });
    const manyShort = candidate("b", { queuedTokens: 4_000, running: 40, legs: 40 });
    assert.equal(new Picker(() => "least-load").pick([oneLong, manyShort]).instanceId, "b");
  });
  it("compares the legs of all routers if no tokens wait", () => {
    const others = candidate("a", { running: 5, legs: 0 });
    const ours = candidate("b", { running: 4, legs: 4 });
    assert.equal(new Picker(() => "least-load").pick([others, ours]).instanceId, "b");
  });
  it("takes turns among the least only", () => {
    const candidates = [candidate("a"), candidate("b", { running: 1 }), candidate("c")];
    assert.equal(picks(new Picker(() => "least-load"), candidates, 4), "acac");
  });
});

describe("the picker", () => {
  it("follows a change of the policy, and keeps the turns", () => {
    let name: "round-robin" | "least-load" = "round-robin";
    const picker = new Picker(() => name);
    const [a, b] = [candidate("a", { legs: 5, running: 5 }), candidate("b")];
    assert.equal(picks(picker, [a, b], 3), "aba");
    name = "least-load";
    assert.equal(picks(picker, [a, b], 2), "bb");
    name = "round-robin";
    assert.equal(picks(picker, [a, b], 2), "ab");
  });
  for (const name of POLICY_NAMES) {
    it(`${name}: picks an instance without a free slot only if none has one`, () => {
      const [full, busy] = [
        candidate("a", { freeSlots: 0 }),
        candidate("b", { queuedTokens: 900, running: 9, legs: 9 }),
      ];
      assert.equal(picks(new Picker(() => name), [full, busy], 3), "bbb");
      assert.equal(new Picker(() => name).pick([full, { ...busy, freeSlots: 0 }]).instanceId, "a");
    });
  }
});
