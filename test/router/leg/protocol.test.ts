// The protocol of the two legs, explored in every interleaving for the traits of every connector.
import assert from "node:assert/strict";
import { CONNECTORS } from "../../../services/kv/index.ts";
import { step } from "../../../services/router/leg/protocol.ts";
import type { LegEffect, LegEvent, LegState, LegTraits, Step } from "../../../services/router/leg/protocol.ts";
import { ERROR, explore, TICKET } from "./explorer.ts";

/** Of every connector, and alone where its engines serve so. */
const TRAITS: Record<string, LegTraits> = {};
for (const { traits } of Object.values(CONNECTORS)) {
  TRAITS[traits.name] = traits;
  if (traits.servesUnpaired) TRAITS[`${traits.name}, decode alone`] = { ...traits, unpaired: true };
}
// Orders that no connector has today.
TRAITS["decode first, a cancellable prefill"] = { decodeFirst: true, prefillCancellable: true };
TRAITS["prefill first, a prefill that runs to its end"] = { decodeFirst: false, prefillCancellable: false };

const SETTLING: LegState = { kind: "settling", prefill: "ended", decode: "abandoned" };

function without(taken: Step, kind: LegEffect["kind"]): Step {
  return changed(taken, (effect) => (effect.kind === kind ? [] : [effect]));
}

function changed(taken: Step, change: (effect: LegEffect) => LegEffect[]): Step {
  return { ...taken, effects: taken.effects.flatMap(change) };
}

describe("the protocol of the two legs", () => {
  for (const [name, traits] of Object.entries(TRAITS)) {
    it(`keeps its promises in every interleaving: ${name}`, function () {
      const found = explore(traits);
      assert.ok(found.states > 10, "the exploration is not trivial");
      this.test!.title += ` (${found.states} states, ${found.steps} steps, longest way ${found.longest})`;
    });
  }

  // The search is only worth what it notices: each of these breaks one promise.
  const sabotages: Record<string, [RegExp, (taken: Step, event: LegEvent) => Step]> = {
    "forgets to abandon": [/abandoned and not told/, (taken) => without(taken, "sendAbandon")],
    "forgets to finish": [/finished exactly/, (taken) => without(taken, "finish")],
    "finishes twice": [
      /finished twice/,
      (taken) => changed(taken, (effect) => (effect.kind === "finish" ? [effect, effect] : [effect])),
    ],
    "denies pushed KV": [
      /denies it/,
      (taken) =>
        changed(taken, (effect) => [effect.kind === "sendAbandon" ? { ...effect, nothingSent: true } : effect]),
    ],
    "starts after a failed prefill": [
      /start without prefill success/,
      (taken, event) =>
        event.kind === "prefillFailed"
          ? { state: { kind: "transferring" }, effects: [{ kind: "sendStart", ticket: TICKET }] }
          : taken,
    ],
    "does not cut an answer that stands still": [
      /ended while the decode leg is/,
      (taken) => without(taken, "cutDecode"),
    ],
    "cuts an answer that nobody wants any more": [
      /a reset where a word would do/,
      (taken, event) =>
        event.kind === "unwanted" && taken.effects.some(({ kind }) => kind === "sendAbandon")
          ? { state: { kind: "ended" }, effects: [{ kind: "cutDecode" }, ...without(taken, "sendAbandon").effects] }
          : taken,
    ],
    "forgets an answer that it abandoned": [
      /ended while the decode leg is (asked-)?abandoned/,
      (taken, event) =>
        event.kind === "unwanted" && taken.state.kind === "settling" ? { ...taken, state: { kind: "ended" } } : taken,
    ],
    "waits for ever for an instance that does not end what was abandoned": [
      /settled for ever/,
      (taken, event) =>
        event.kind === "settleTimeout" && taken.effects.length > 0 ? { state: SETTLING, effects: [] } : taken,
    ],
    "ignores a client that leaves": [
      /obeyed at once/,
      (taken, event) => (event.kind === "unwanted" ? { state: { kind: "transferring" }, effects: [] } : taken),
    ],
    "cancels a prefill that can't be": [
      /can't be cancelled/,
      (taken, event) =>
        event.kind === "unwanted" ? { ...taken, effects: [{ kind: "cancelPrefill" }, ...taken.effects] } : taken,
    ],
  };
  for (const [name, [message, sabotage]] of Object.entries(sabotages)) {
    it(`is explored by a search that notices a machine that ${name}`, () => {
      const broken: typeof step = (traits, state, event) => sabotage(step(traits, state, event), event);
      assert.throws(() => explore({ decodeFirst: true, prefillCancellable: false }, broken), message);
    });
  }

  it("starts the decode leg with prefill's ticket", () => {
    const taken = step(
      { decodeFirst: true, prefillCancellable: false },
      { kind: "prefilling", reserved: true },
      { kind: "prefillDone", ticket: { text: "{}", cachedTokens: 3 } },
    );
    assert.deepEqual(taken.effects, [{ kind: "sendStart", ticket: { text: "{}", cachedTokens: 3 } }]);
  });

  it("takes the same ticket to another decode instance when one refuses", () => {
    const traits: LegTraits = { decodeFirst: false, prefillCancellable: true };
    const refused = step(
      traits,
      { kind: "opening", ticket: TICKET, asked: true },
      { kind: "decodeRefused", error: ERROR },
    );
    assert.deepEqual(refused.effects, [{ kind: "seekDecode", refusal: ERROR }]);
    const found = step(traits, refused.state, { kind: "decodeFound" });
    assert.deepEqual(found.effects, [{ kind: "reserve", ticket: TICKET }]);
  });
});
