// One attempt as a whole, and two attempts of one request, explored in every interleaving for each connector.
import assert from "node:assert/strict";
import { CONNECTORS } from "../../../services/kv/index.ts";
import { NEW } from "../../../services/decode/protocol.ts";
import { UNSEEN } from "../../../services/prefill/outcomes.ts";
import { type Budget, explorePair, exploreSystem, type Found } from "./system-search.ts";
import { MACHINES } from "./system.ts";
import type { Machines } from "./system-world.ts";

/** More faults and stops: CONTRIBUTING.md. */
const MORE = Number(process.env["TANDEM_EXPLORE"] ?? 0);
const ONE: Budget = { faults: 2 + Math.min(MORE, 1), stops: 1 + MORE };
const TWO: Budget = { faults: Math.max(0, MORE - 1), stops: Math.min(MORE, 1) };
/** With NIXL there are few enough states. */
const TWO_OF_NIXL: Budget = { faults: Math.max(1, TWO.faults), stops: TWO.stops };

const TRAITS = Object.values(CONNECTORS).map(({ traits }) => traits);

function told({ states, steps }: Found): string {
  return ` (${states} states, ${steps} steps)`;
}

describe("an attempt, with both halves of its leg, prefill's outcome, and links that delay, reorder and lose", () => {
  for (const traits of TRAITS) {
    it(`ends, leaves no KV and no slot behind, and answers once: ${traits.name}`, function () {
      this.timeout(600_000);
      this.test!.title += told(exploreSystem(traits, MACHINES, ONE));
    });
  }

  for (const [traits, how] of [
    ["p2p-zmq", "hedge"],
    ["p2p-nccl", "retry"],
    ["nixl", "hedge"],
    ["nixl", "retry"],
  ] as const) {
    it(`ends beside another attempt of its request, and one of them answers: ${traits}, ${how}`, function () {
      this.timeout(600_000);
      const budget = traits === "nixl" ? TWO_OF_NIXL : TWO;
      this.test!.title += told(explorePair(CONNECTORS[traits].traits, MACHINES, budget, how));
    });
  }

  // The search is only worth what it notices: each of these breaks one promise.
  const sabotages: Record<string, [RegExp, Partial<Machines>]> = {
    "takes a call that broke before the start for one whose prefill sent nothing": [
      /KV is left behind/,
      {
        decode: (traits, state, event) =>
          MACHINES.decode(traits, state, event.kind === "callBroken" ? { kind: "abandon", nothingSent: true } : event),
      },
    ],
    "lets a prefill run that was asked for before it arrived": [
      /KV is left behind/,
      { outcome: (state, event) => MACHINES.outcome(state.kind === "shut" ? UNSEEN : state, event) },
    ],
    "forgets a leg while its KV is settled": [
      /its slot is free exactly when it is over|what is over stays so/,
      {
        decode: (traits, state, event) =>
          state.kind === "settling" ? { state: NEW, effects: [] } : MACHINES.decode(traits, state, event),
      },
    ],
    "books no debt": [
      /settled exactly where KV may be/,
      {
        settlement: (traits, outcome, maybeTaken) => {
          const wanted = MACHINES.settlement(traits, outcome, maybeTaken);
          return wanted === "book" ? "nothing" : wanted;
        },
      },
    ],
    "drains what may be gone": [
      /booked exactly where nothing frees/,
      { settlement: (traits, outcome) => MACHINES.settlement(traits, outcome === "unknown" ? "sent" : outcome, false) },
    ],
    "stops an answer whose KV only the engine can drop": [
      /KV that only the engine can drop is taken first/,
      {
        decode: (traits, state, event) => MACHINES.decode({ ...traits, abandoned: "release" }, state, event),
      },
    ],
  };
  for (const [name, [message, broken]] of Object.entries(sabotages)) {
    it(`is explored by a search that notices a system that ${name}`, () => {
      const machines = { ...MACHINES, ...broken };
      assert.throws(() => {
        for (const traits of TRAITS) exploreSystem(traits, machines, { faults: 1, stops: 1 });
      }, message);
    });
  }
});
