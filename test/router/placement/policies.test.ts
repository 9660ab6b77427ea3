import assert from "node:assert/strict";
import { POLICY_NAMES } from "../../../services/router/config.ts";
import { namedPolicy, policyOf } from "../../../services/router/placement/policies.ts";
import type { Candidate } from "../../../services/router/placement/policies.ts";

function candidate(instanceId: string, figures: Partial<Candidate> = {}): Candidate {
  return {
    instanceId,
    ordinal: instanceId.charCodeAt(0),
    legs: 0,
    queuedTokens: 0,
    running: 0,
    freeSlots: 8,
    ...figures,
  };
}

const picks = (policy: ReturnType<typeof policyOf>, candidates: readonly Candidate[], count: number): string =>
  Array.from({ length: count }, () => policy.pick(candidates).instanceId).join("");

describe("every policy", () => {
  for (const name of POLICY_NAMES) {
    it(`${name}: picks the only candidate`, () => {
      assert.equal(policyOf(name).pick([candidate("a")]).instanceId, "a");
    });
    it(`${name}: spreads a burst over equals, however stale the figures`, () => {
      assert.equal(picks(policyOf(name), [candidate("a"), candidate("b"), candidate("c")], 6), "abcabc");
    });
    it(`${name}: has a memory of its own for each leg`, () => {
      const pair = [candidate("a"), candidate("b")];
      const prefill = policyOf(name);
      const decode = policyOf(name);
      assert.equal(picks(prefill, pair, 1) + picks(decode, pair, 1), "aa");
    });
  }
});

describe("round-robin", () => {
  it("goes on where it was when an instance leaves and another joins", () => {
    const policy = policyOf("round-robin");
    assert.equal(picks(policy, [candidate("a"), candidate("b"), candidate("c")], 2), "ab");
    assert.equal(picks(policy, [candidate("a"), candidate("c"), candidate("d")], 3), "cda");
  });
  it("takes no notice of load", () => {
    const busy = candidate("a", { queuedTokens: 9_000, running: 9, legs: 9 });
    assert.equal(picks(policyOf("round-robin"), [busy, candidate("b")], 4), "abab");
  });
});

describe("least-load", () => {
  it("goes by waiting prompt tokens before it goes by legs", () => {
    const onelong = candidate("a", { queuedTokens: 32_000, running: 1, legs: 1 });
    const manyShort = candidate("b", { queuedTokens: 4_000, running: 40, legs: 40 });
    assert.equal(policyOf("least-load").pick([onelong, manyShort]).instanceId, "b");
  });
  it("goes by legs of all routers where no tokens wait", () => {
    const others = candidate("a", { running: 5, legs: 0 });
    const ours = candidate("b", { running: 4, legs: 4 });
    assert.equal(policyOf("least-load").pick([others, ours]).instanceId, "b");
  });
  it("takes turns among the least only", () => {
    const candidates = [candidate("a"), candidate("b", { running: 1 }), candidate("c")];
    assert.equal(picks(policyOf("least-load"), candidates, 4), "acac");
  });
});

describe("a policy that settings name", () => {
  it("keeps its memory until another one is named", () => {
    let name: "round-robin" | "least-load" = "round-robin";
    const policy = namedPolicy(() => name);
    const [a, b] = [candidate("a", { legs: 5, running: 5 }), candidate("b")];
    assert.equal(picks(policy, [a, b], 3), "aba");
    name = "least-load";
    assert.equal(picks(policy, [a, b], 2), "bb");
    name = "round-robin";
    assert.equal(picks(policy, [a, b], 1), "a", "it starts anew");
  });
});
