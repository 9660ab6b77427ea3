// When a late attempt gets a second one beside it, by its wait and the budget.
import assert from "node:assert/strict";
import type { Wait } from "../../../services/router/leg/bounds.ts";
import { createHedgeBudget, endsBoth, hedgeAtMs, mayHedge } from "../../../services/router/relay/attempts.ts";
import type { RelayRequest } from "../../../services/router/relay/relay.ts";

describe("the decision to hedge", () => {
  it("is for requests of one choice that may use fallbacks, and can be switched off", () => {
    const request = { choices: 1, prompts: 1 } as RelayRequest;
    assert.equal(mayHedge(request, 0.05), true);
    assert.equal(mayHedge(request, 0), false);
    assert.equal(mayHedge({ ...request, strict: true }, 0.05), false);
    assert.equal(mayHedge({ ...request, choices: 2 }, 0.05), false);
    assert.equal(mayHedge({ ...request, prompts: 2 }, 0.05), false);
  });

  it("comes when patience ends, and not while a queue moves", () => {
    const wait = { sinceMs: 5_000, patienceMs: 1_000, moved: false, queuing: false } as Wait;
    assert.equal(hedgeAtMs(wait, 5_500), 6_000);
    assert.equal(hedgeAtMs(wait, 6_000), 6_000);
    assert.equal(hedgeAtMs(wait, 9_000), 9_000);
    assert.equal(hedgeAtMs({ ...wait, queuing: true }, 6_000), 6_000, "a queue that stands is no excuse");
    assert.equal(hedgeAtMs({ ...wait, moved: true }, 6_000), 6_000, "others go on, this one does not");
    assert.equal(hedgeAtMs({ ...wait, moved: true, queuing: true }, 6_000), 7_000);
  });

  it("has a budget: some at first, then a share of requests", () => {
    const limits = { current: { hedgeRatio: 0.05 } };
    const budget = createHedgeBudget(limits);
    let taken = 0;
    while (budget.take()) taken += 1;
    assert.equal(taken, 16);
    for (let request = 0; request < 19; request += 1) budget.earn();
    assert.equal(budget.take(), false);
    budget.earn();
    assert.equal(budget.take(), true);
    assert.equal(budget.take(), false);
    for (let request = 0; request < 10_000; request += 1) budget.earn();
    for (taken = 0; budget.take(); taken += 1);
    assert.equal(taken, 16);
  });

  it("ends both attempts for a failure that every instance would report", () => {
    for (const code of ["engine_refused", "invalid_request", "deadline_exceeded"] as const) assert.ok(endsBoth(code));
    for (const code of ["leg_stalled", "instance_lost", "instance_busy", "no_instance"] as const)
      assert.ok(!endsBoth(code));
  });
});
