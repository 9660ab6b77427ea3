// Explores the leg protocol exhaustively: every interleaving of what the two instances, the client and the clock may do,
// from every state that can be reached. The world model below knows what each side may still say; the checks know what
// the machine must never do. The space is finite (refusals are bounded), so the search is complete and not sampled.
import assert from "node:assert/strict";
import { ServiceError } from "../../../services/common/errors.ts";
import { IDLE, step } from "../../../services/router/relay/legs.ts";
import type { Handoff, LegEffect, LegEvent, LegState, LegTraits, Step } from "../../../services/router/relay/legs.ts";

const ERROR = new ServiceError("engine_failed", "Failed.");
const HANDOFF: Handoff = { ticket: "t", cachedTokens: undefined };
/** Decode instances that may refuse one attempt. */
const REFUSAL_LIMIT = 3;
/** Stops (client gone, deadline) that may arrive. More than one, since they race. */
const STOP_LIMIT = 2;

/** What is true outside of the machine. */
interface World {
  readonly prefill: "none" | "running" | "done" | "nothing-sent" | "unknown" | "cut" | "cut-late";
  readonly decode:
    | "none"
    | "asked" // reserved, unanswered
    | "asked-started" // reserved and started together, unanswered
    | "held" // reservation accepted
    | "started"
    | "asked-abandoned"
    | "abandoned"
    | "ended"
    | "cut"
    | "cut-late";
  readonly abandonedAs: "none" | "settle" | "nothing-sent";
  readonly refusals: number;
  readonly stops: number;
  readonly finished: "no" | "completed" | "cancelled" | "failed";
  readonly decodeEnded: boolean; // with its `end`
}

interface Node {
  readonly machine: LegState;
  readonly world: World;
}

const START: Node = {
  machine: IDLE,
  world: {
    prefill: "none", decode: "none", abandonedAs: "none", refusals: 0, stops: 0, finished: "no", decodeEnded: false,
  },
};

type Move = { readonly event: LegEvent; readonly world: World; /** Of the client or a clock: may never come. */ readonly optional: boolean };

function moves({ machine, world }: Node): Move[] {
  const list: Move[] = [];
  const add = (event: LegEvent, change: Partial<World>, optional = false): void => {
    list.push({ event, world: { ...world, ...change }, optional });
  };
  if (machine.kind === "idle") add({ kind: "begin" }, {});
  switch (world.prefill) {
    case "running":
      add({ kind: "prefillDone", handoff: HANDOFF }, { prefill: "done" });
      add({ kind: "prefillFailed", error: ERROR, nothingSent: true }, { prefill: "nothing-sent" });
      add({ kind: "prefillFailed", error: ERROR, nothingSent: false }, { prefill: "unknown" });
      break;
    case "cut": // Its answer was on the way already, or the cut itself is reported.
      add({ kind: "prefillDone", handoff: HANDOFF }, { prefill: "cut-late" }, true);
      add({ kind: "prefillFailed", error: ERROR, nothingSent: false }, { prefill: "cut-late" }, true);
      break;
    default:
  }
  const fail = (change: Partial<World> = {}, optional = false): void =>
    add({ kind: "decodeFailed", error: ERROR }, { decode: "ended", ...change }, optional);
  switch (world.decode) {
    case "asked":
    case "asked-started":
      add({ kind: "reserved" }, { decode: world.decode === "asked" ? "held" : "started" });
      if (world.refusals < REFUSAL_LIMIT) {
        add({ kind: "decodeRefused", error: ERROR }, { decode: "ended", refusals: world.refusals + 1 });
      }
      fail();
      break;
    case "held":
      fail(); // Lost, or its hold ran out.
      break;
    case "started":
      add({ kind: "decodeChunk" }, {}, true);
      add({ kind: "decodeEnd" }, { decode: "ended", decodeEnded: true });
      fail();
      break;
    case "asked-abandoned":
      add({ kind: "reserved" }, { decode: "abandoned" }, true);
      add({ kind: "decodeRefused", error: ERROR }, { decode: "ended" }, true);
      fail();
      break;
    case "abandoned":
      add({ kind: "decodeEnd" }, { decode: "ended" });
      fail();
      break;
    case "cut":
      add({ kind: "reserved" }, { decode: "cut-late" }, true);
      add({ kind: "decodeChunk" }, { decode: "cut-late" }, true);
      add({ kind: "decodeEnd" }, { decode: "cut-late" }, true);
      fail({ decode: "cut-late" }, true);
      break;
    default:
  }
  if (world.stops < STOP_LIMIT) {
    add({ kind: "unwanted" }, { stops: world.stops + 1 }, true);
    add({ kind: "overdue", error: ERROR }, { stops: world.stops + 1 }, true);
  }
  add({ kind: "settleTimeout" }, {}, true);
  return list;
}

/** The world after an effect. Throws where the effect breaks a promise. */
function apply(traits: LegTraits, world: World, effect: LegEffect): World {
  switch (effect.kind) {
    case "openDecode":
      assert.ok(world.decode === "none" || world.decode === "ended", "a second decode call while one is open");
      assert.equal(world.finished, "no", "a decode call for a finished leg");
      if (effect.handoff !== undefined) {
        assert.equal(world.prefill, "done", "start without prefill success");
        return { ...world, decode: "asked-started" };
      }
      assert.ok(traits.decodeFirst, "a reservation without start where prefill comes first");
      assert.equal(world.prefill, "none", "prefill before the reservation");
      return { ...world, decode: "asked" };
    case "callPrefill":
      assert.equal(world.prefill, "none", "prefill twice under one leg id");
      assert.equal(world.finished, "no", "prefill for a finished leg");
      if (traits.decodeFirst) assert.equal(world.decode, "held", "prefill paid without a reservation");
      return { ...world, prefill: "running" };
    case "sendStart":
      assert.equal(world.prefill, "done", "start without prefill success");
      assert.equal(world.decode, "held", "start to a leg that is not held");
      assert.equal(world.finished, "no", "start of a finished leg");
      return { ...world, decode: "started" };
    case "sendAbandon":
      assert.ok(world.decode === "held" || world.decode === "asked", "abandon to a leg that is not held");
      assert.notEqual(world.prefill, "running", "abandon while it is open what prefill pushes");
      if (effect.nothingSent) {
        assert.ok(world.prefill === "none" || world.prefill === "nothing-sent", "KV may be there, but abandon denies it");
      }
      return {
        ...world,
        decode: world.decode === "asked" ? "asked-abandoned" : "abandoned",
        abandonedAs: effect.nothingSent ? "nothing-sent" : "settle",
      };
    case "cancelPrefill":
      assert.ok(traits.prefillCancellable, "cancel of a prefill that can't be cancelled");
      assert.equal(world.prefill, "running", "cancel of a prefill that does not run");
      return { ...world, prefill: "cut" };
    case "cancelDecode":
      // "ended" is where the driver still looks for an instance to replace one that refused.
      assert.ok(world.decode !== "none" && world.decode !== "cut", "cancel of a decode leg that was not opened");
      return { ...world, decode: world.decode === "ended" ? "ended" : "cut" };
    case "finish":
      assert.equal(world.finished, "no", "finished twice");
      if (effect.outcome.kind === "completed") assert.ok(world.decodeEnded, "completed without an end");
      return { ...world, finished: effect.outcome.kind };
  }
}

function check(traits: LegTraits, { machine, world }: Node, event: LegEvent): void {
  const over = machine.kind === "ended" || machine.kind === "settling";
  assert.equal(world.finished !== "no", over, "finished exactly when the client is served");
  if (event.kind === "unwanted" || event.kind === "overdue") assert.ok(over, "a stop is obeyed at once");
  if (machine.kind === "settling") {
    assert.equal(machine.prefill === "running", world.prefill === "running", "what it takes prefill for, it is");
    if (machine.decode === "reserved") assert.equal(world.decode, "held", "what it takes for reserved, is held");
    if (machine.decode === "abandoned") assert.ok(world.decode.endsWith("abandoned"), "abandoned and not told");
  }
  if (machine.kind !== "ended") return;
  assert.notEqual(world.prefill, "running", "ended while prefill runs");
  assert.ok(!["asked", "asked-started", "held", "started", "asked-abandoned", "abandoned"].includes(world.decode),
    `ended while the decode leg is ${world.decode}`);
  const kvMayBeThere = ["done", "unknown", "cut", "cut-late"].includes(world.prefill);
  if (traits.decodeFirst && kvMayBeThere) {
    assert.notEqual(world.abandonedAs, "nothing-sent", "pushed KV is left behind");
  }
}

interface Exploration {
  readonly states: number;
  readonly steps: number;
  readonly longest: number;
}

function explore(traits: LegTraits, machine: typeof step = step): Exploration {
  const nodes = new Map<string, Node>([[key(START), START]]);
  const next = new Map<string, Set<string>>();
  const queue = [START];
  let steps = 0;
  for (let node = queue.shift(); node !== undefined; node = queue.shift()) {
    const from = key(node);
    const successors = new Set<string>();
    next.set(from, successors);
    const possible = moves(node);
    for (const move of possible) {
      steps += 1;
      try {
        const taken = machine(traits, node.machine, move.event);
        const world = taken.effects.reduce((now, effect) => apply(traits, now, effect), move.world);
        const reached: Node = { machine: taken.state, world };
        check(traits, reached, move.event);
        const to = key(reached);
        if (to !== from) successors.add(to);
        if (!nodes.has(to)) {
          nodes.set(to, reached);
          queue.push(reached);
        }
      } catch (cause) {
        throw new Error(`${(cause as Error).message}: ${move.event.kind} in ${from}`, { cause });
      }
    }
    // Something that must come is always on its way, or all is over: no state waits for ever.
    if (node.machine.kind !== "ended") assert.ok(possible.some((move) => !move.optional), `nothing ends ${from}`);
  }
  return { states: nodes.size, steps, longest: longestPath(key(START), next) };
}

/** Throws where the graph has a cycle: with none, every way through it comes to its end. */
function longestPath(start: string, next: ReadonlyMap<string, ReadonlySet<string>>): number {
  const length = new Map<string, number>();
  const open = new Set<string>();
  const visit = (node: string): number => {
    const known = length.get(node);
    if (known !== undefined) return known;
    assert.ok(!open.has(node), `a way that never ends, by ${node}`);
    open.add(node);
    let longest = 0;
    for (const to of next.get(node)!) longest = Math.max(longest, 1 + visit(to));
    open.delete(node);
    length.set(node, longest);
    return longest;
  };
  return visit(start);
}

function without(taken: Step, kind: LegEffect["kind"]): Step {
  return changed(taken, (effect) => (effect.kind === kind ? [] : [effect]));
}

function changed(taken: Step, change: (effect: LegEffect) => LegEffect[]): Step {
  return { ...taken, effects: taken.effects.flatMap(change) };
}

function key({ machine, world }: Node): string {
  return JSON.stringify([machine, world]);
}

describe("the protocol of the two legs", () => {
  for (const decodeFirst of [true, false]) {
    for (const prefillCancellable of [true, false]) {
      const order = decodeFirst ? "decode first" : "prefill first";
      const cancel = prefillCancellable ? "a cancellable prefill" : "a prefill that runs to its end";
      it(`keeps its promises in every interleaving: ${order}, ${cancel}`, function () {
        const found = explore({ decodeFirst, prefillCancellable });
        assert.ok(found.states > 40, "the exploration is not trivial");
        this.test!.title += ` (${found.states} states, ${found.steps} steps, longest way ${found.longest})`;
      });
    }
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
      (taken) => changed(taken, (effect) => [effect.kind === "sendAbandon" ? { ...effect, nothingSent: true } : effect]),
    ],
    "starts after a failed prefill": [
      /start without prefill success/,
      (taken, event) =>
        event.kind === "prefillFailed"
          ? { state: { kind: "handover" }, effects: [{ kind: "sendStart", handoff: HANDOFF }] }
          : taken,
    ],
    "does not cut a running answer": [/ended while the decode leg is/, (taken) => without(taken, "cancelDecode")],
    "ignores a client that leaves": [
      /obeyed at once/,
      (taken, event) => (event.kind === "unwanted" ? { state: { kind: "handover" }, effects: [] } : taken),
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
      { kind: "prefillDone", handoff: { ticket: "{}", cachedTokens: 3 } },
    );
    assert.deepEqual(taken.effects, [{ kind: "sendStart", handoff: { ticket: "{}", cachedTokens: 3 } }]);
  });

  it("takes the same ticket to another decode instance when one refuses", () => {
    const taken = step(
      { decodeFirst: false, prefillCancellable: true },
      { kind: "opening", handoff: HANDOFF },
      { kind: "decodeRefused", error: ERROR },
    );
    assert.deepEqual(taken.effects, [{ kind: "openDecode", handoff: HANDOFF }]);
  });
});
