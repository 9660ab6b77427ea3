// The world behind system.test.ts: one attempt as a whole. The router's half of a leg, decode's half and prefill's
// outcome, with the engines and the links between them. Every message and every KV transfer may be late; those of
// different calls overtake each other; those of one call arrive in order. Connections break and lose what was on its
// way, engines and instances are replaced, the router dies, the client leaves: a few such faults at any point.
// Left out, because no protocol decides by it: bodies, tokens beyond the first, and time. A bound that runs out is an
// event that may come at any point.
import { settlementOf, stepDecode } from "../../../services/decode/protocol.ts";
import { stepOutcome } from "../../../services/prefill/outcomes.ts";
import { type LegEvent, step } from "../../../services/router/leg/protocol.ts";
import { DecodeHalf } from "./system-decode.ts";
import { PrefillHalf } from "./system-prefill.ts";
import { RouterHalf } from "./system-router.ts";
import type { Add, Attempt, Machines, SharedMove, SystemTraits } from "./system-world.ts";

export const MACHINES: Machines = {
  router: step,
  decode: stepDecode,
  settlement: settlementOf,
  outcome: stepOutcome,
};

/** What may happen to an attempt, and what comes of it. */
export class System {
  readonly #router: RouterHalf;
  readonly #decode: DecodeHalf;
  readonly #prefill: PrefillHalf;

  constructor(traits: SystemTraits, machines: Machines) {
    this.#router = new RouterHalf(traits, machines.router);
    this.#decode = new DecodeHalf(traits, machines);
    this.#prefill = new PrefillHalf(traits, machines.outcome);
  }

  /** What happens to all attempts of a request at once. */
  readonly shared: readonly SharedMove[] = [
    { kind: "stop", name: "it is unwanted", change: (w) => this.route(w, { kind: "unwanted" }) },
    { kind: "fault", name: "the router dies", change: (w) => this.#router.dies(w) },
    { kind: "fault", name: "the decode instance is replaced", change: (w) => this.#decode.dies(w) },
  ];

  moves(at: Attempt, add: Add): void {
    this.#router.moves(at, add);
    this.#decode.moves(at, add);
    this.#prefill.moves(at, add);
  }

  route(w: Attempt, event: LegEvent): void {
    this.#router.route(w, event);
  }
}
