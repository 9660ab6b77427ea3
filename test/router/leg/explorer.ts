// The search behind protocol.test.ts. Explores the leg protocol exhaustively: every interleaving of what the two instances, the client and the clock may do,
// from every state that can be reached. The world model below knows what each side may still say; the checks know what
// the machine must never do. What may happen, and as which event it comes here:
//   reserved, refused (busy, draining, starting), lost, its hold run out: reserved, decodeRefused, decodeFailed
//   prefill answers, fails, its outcome unknown (stalled, lost, timed out): prefillDone, prefillFailed with or without KV
//   decode is looked for, found, not found: decodeFound, decodeFailed
//   decode starts, streams, fails, is lost, stands still: decodeChunk, decodeEnd, decodeFailed, decodeStalled
//   decode ends what was abandoned, had ended it already, is lost, never does: decodeSettled, decodeEnd, decodeFailed,
//     settleTimeout
//   client leaves, another choice failed, the request's time is up, the router drains: unwanted
//   the router is lost: no event, for the machine is gone; `survives` checks at every state what it leaves behind
// The space is finite (refusals are bounded), so the search is complete and not sampled.
import assert from "node:assert/strict";
import { ServiceError } from "../../../services/common/errors.ts";
import { IDLE, step } from "../../../services/router/leg/protocol.ts";
import type { LegEffect, LegEvent, LegState, LegTraits, Step, Ticket } from "../../../services/router/leg/protocol.ts";
import type { AnswerEnd } from "../../../services/router/request/request.ts";

export const ERROR = new ServiceError("engine_failed", "Failed.");
export const TICKET: Ticket = { text: "t", cachedTokens: undefined };
const END: AnswerEnd = { finishReason: "stop", promptTokens: 5, completionTokens: 2 };
/** Decode instances that may refuse one attempt. */
const REFUSAL_LIMIT = 3;
/** Stops (client gone, deadline) that may come. More than one, since they race. */
const STOP_LIMIT = 2;

/** Where the decode instance owes a word. */
const WAITING: ReadonlySet<string> = new Set(["asked", "asked-started", "started"]);
const WATCHED: ReadonlySet<string> = new Set(["reserving", "opening", "transferring", "streaming"]);

/** What is true outside of the machine. */
interface World {
  readonly prefill: "none" | "running" | "done" | "nothing-sent" | "unknown" | "cut" | "cut-late";
  readonly decode:
    | "none"
    | "sought" // an instance is looked for
    | "asked" // reserved, unanswered
    | "asked-started" // reserved and started together, unanswered
    | "held" // reservation accepted
    | "started"
    | "asked-abandoned"
    | "abandoned" // reserved or started, and then abandoned
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
    prefill: "none",
    decode: "none",
    abandonedAs: "none",
    refusals: 0,
    stops: 0,
    finished: "no",
    decodeEnded: false,
  },
};

type Move = {
  readonly event: LegEvent;
  readonly world: World /** Of the client or a clock: may never come. */;
  readonly optional: boolean;
};

function moves({ machine, world }: Node): Move[] {
  const list: Move[] = [];
  const add = (event: LegEvent, change: Partial<World>, optional = false): void => {
    list.push({ event, world: { ...world, ...change }, optional });
  };
  if (machine.kind === "idle") add({ kind: "begin" }, {});
  switch (world.prefill) {
    case "running":
      add({ kind: "prefillDone", ticket: TICKET }, { prefill: "done" });
      add({ kind: "prefillFailed", error: ERROR, nothingSent: true }, { prefill: "nothing-sent" });
      add({ kind: "prefillFailed", error: ERROR, nothingSent: false }, { prefill: "unknown" });
      break;
    case "cut": // Its answer was on the way already, or the cut itself is reported.
      add({ kind: "prefillDone", ticket: TICKET }, { prefill: "cut-late" }, true);
      add({ kind: "prefillFailed", error: ERROR, nothingSent: false }, { prefill: "cut-late" }, true);
      break;
    default:
  }
  const fail = (change: Partial<World> = {}, optional = false): void =>
    add({ kind: "decodeFailed", error: ERROR }, { decode: "ended", ...change }, optional);
  switch (world.decode) {
    case "sought":
      add({ kind: "decodeFound" }, {});
      fail(); // There is none.
      break;
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
      add({ kind: "decodeEnd", end: END }, { decode: "ended", decodeEnded: true });
      fail();
      break;
    case "asked-abandoned":
      add({ kind: "reserved" }, { decode: "abandoned" }, true);
      add({ kind: "decodeRefused", error: ERROR }, { decode: "ended" }, true);
      add({ kind: "decodeSettled" }, { decode: "ended" });
      fail();
      break;
    case "abandoned": // What of a started answer was on the way still comes, its end too.
      add({ kind: "decodeChunk" }, {}, true);
      add({ kind: "decodeEnd", end: END }, { decode: "ended" });
      add({ kind: "decodeSettled" }, { decode: "ended" });
      fail();
      break;
    case "cut":
      add({ kind: "reserved" }, { decode: "cut-late" }, true);
      add({ kind: "decodeChunk" }, { decode: "cut-late" }, true);
      add({ kind: "decodeEnd", end: END }, { decode: "cut-late" }, true);
      fail({ decode: "cut-late" }, true);
      break;
    default:
  }
  // Of a clock; the call is still open, and the effect has to cut it.
  if (WAITING.has(world.decode) && WATCHED.has(machine.kind)) add({ kind: "decodeStalled", error: ERROR }, {}, true);
  if (world.stops < STOP_LIMIT) add({ kind: "unwanted" }, { stops: world.stops + 1 }, true);
  add({ kind: "settleTimeout" }, {}, true);
  return list;
}

/** The world after an effect. Throws where the effect breaks a promise. */
function apply(traits: LegTraits, world: World, effect: LegEffect): World {
  switch (effect.kind) {
    case "seekDecode":
      assert.ok(world.decode === "none" || world.decode === "ended", "a search while a decode leg is open");
      assert.equal(world.finished, "no", "a search for a finished leg");
      if (traits.unpaired !== true) assert.equal(world.prefill, "done", "a search without prefill success");
      assert.equal(effect.refusal !== undefined, world.refusals > 0, "a refusal is told to the search after it");
      return { ...world, decode: "sought" };
    case "endSearch":
      assert.equal(world.decode, "sought", "an end of a search that is not on");
      return { ...world, decode: "ended" };
    case "reserve":
      assert.equal(world.finished, "no", "a reservation for a finished leg");
      if (effect.ticket === undefined) {
        assert.ok(traits.decodeFirst, "a reservation without start where prefill comes first");
        assert.equal(world.decode, "none", "a second decode leg while one is open");
        assert.equal(world.prefill, "none", "prefill before the reservation");
        return { ...world, decode: "asked" };
      }
      assert.equal(world.decode, "sought", "a reservation where no instance was found");
      if (traits.unpaired === true) assert.ok(effect.ticket.unpaired, "a leg without prefill that does not say so");
      else {
        assert.equal(world.prefill, "done", "start without prefill success");
        assert.equal(effect.ticket, TICKET, "start with another ticket than prefill's");
      }
      return { ...world, decode: "asked-started" };
    case "callPrefill":
      assert.equal(world.prefill, "none", "prefill twice under one leg id");
      assert.ok(traits.unpaired !== true, "prefill for a leg without one");
      assert.equal(world.finished, "no", "prefill for a finished leg");
      if (traits.decodeFirst) assert.equal(world.decode, "held", "prefill paid without a reservation");
      return { ...world, prefill: "running" };
    case "sendStart":
      assert.equal(world.prefill, "done", "start without prefill success");
      assert.equal(world.decode, "held", "start to a leg that is not held");
      assert.equal(world.finished, "no", "start of a finished leg");
      assert.equal(effect.ticket, TICKET, "start with another ticket than prefill's");
      return { ...world, decode: "started" };
    case "sendAbandon":
      assert.ok(
        ["asked", "asked-started", "held", "started"].includes(world.decode),
        "abandon to a leg that is not held",
      );
      assert.notEqual(world.prefill, "running", "abandon while it is open what prefill pushes");
      if (effect.nothingSent) {
        assert.ok(
          world.prefill === "none" || world.prefill === "nothing-sent",
          "KV may be there, but abandon denies it",
        );
      } else if (traits.unpaired !== true) {
        // It would be asked for, and where nobody can answer, an engine restarted for nothing.
        assert.ok(world.prefill !== "none" && world.prefill !== "nothing-sent", "abandon claims KV that never was");
      }
      return {
        ...world,
        decode: world.decode.startsWith("asked") ? "asked-abandoned" : "abandoned",
        abandonedAs: effect.nothingSent ? "nothing-sent" : "settle",
      };
    case "cancelPrefill":
      assert.ok(traits.prefillCancellable, "cancel of a prefill that can't be cancelled");
      assert.equal(world.prefill, "running", "cancel of a prefill that does not run");
      return { ...world, prefill: "cut" };
    case "cutDecode":
      assert.ok(
        !["none", "sought", "ended", "cut", "cut-late"].includes(world.decode),
        "cut of a decode leg that is not open",
      );
      return { ...world, decode: "cut" };
    case "finish":
      assert.equal(world.finished, "no", "finished twice");
      if (effect.outcome.kind === "completed") assert.ok(world.decodeEnded, "completed without an end");
      return { ...world, finished: effect.outcome.kind };
  }
}

function check(traits: LegTraits, { machine, world }: Node, event: LegEvent, before: World, { effects }: Step): void {
  const over = machine.kind === "ended" || machine.kind === "settling";
  assert.equal(world.finished !== "no", over, "finished exactly when the client is served");
  if (event.kind === "unwanted") assert.ok(over, "a stop is obeyed at once");
  if (world.decode === "cut" && before.decode !== "cut") {
    assert.ok(event.kind === "decodeStalled" || event.kind === "settleTimeout", "a reset where a word would do");
  }
  if (machine.kind === "settling") {
    assert.equal(machine.prefill === "running", world.prefill === "running", "what it takes prefill for, it is");
    if (machine.decode === "reserved") {
      assert.equal(world.decode, "held", "what it takes for reserved, is held");
      assert.equal(machine.prefill, "running", "a reservation is kept that nobody waits for");
    }
    if (machine.decode === "abandoned") assert.ok(world.decode.endsWith("abandoned"), "abandoned and not told");
  }
  if (machine.kind === "opening")
    assert.equal(world.decode, machine.asked ? "asked-started" : "sought", "what it takes for asked, is");
  if (machine.kind === "transferring" || machine.kind === "streaming")
    assert.equal(world.decode, "started", "what it takes for started, is");
  if (event.kind === "decodeChunk" && !over) assert.equal(machine.kind, "streaming", "a token that came is delivered");
  if (event.kind === "reserved" && !over)
    assert.notEqual(traits.unpaired === true ? "" : world.prefill, "none", "a reservation is used at once");
  if (event.kind === "decodeFound" && !over)
    assert.equal(world.decode, "asked-started", "an instance that was found is asked at once");
  if (event.kind === "decodeStalled") {
    assert.equal(machine.kind, "ended", "what stalled is left at once, and not waited for again");
    const outcome = effects.flatMap((effect) => (effect.kind === "finish" ? [effect.outcome] : []))[0];
    assert.ok(outcome?.kind === "failed" && outcome.side === "decode", "a stall of decode is a failure of decode");
    // Whom it speaks against depends on it.
    assert.equal(outcome.phase === "reserve", before.decode.startsWith("asked"), "a stall is told of its own part");
  }
  if (event.kind === "settleTimeout")
    assert.ok(machine.kind !== "settling" || machine.decode !== "abandoned", "settled for ever");
  if (event.kind === "decodeFailed" && !traits.decodeFirst) assert.ok(over, "a lost decode leg is left at once");
  survives(traits, world);
  if (machine.kind !== "ended") return;
  assert.notEqual(world.prefill, "running", "ended while prefill runs");
  assert.ok(
    !["sought", "asked", "asked-started", "held", "started", "asked-abandoned", "abandoned"].includes(world.decode),
    `ended while the decode leg is ${world.decode}`,
  );
  const kvMayBeThere = ["done", "unknown", "cut", "cut-late"].includes(world.prefill);
  if (traits.decodeFirst && kvMayBeThere) {
    assert.notEqual(world.abandonedAs, "nothing-sent", "pushed KV is left behind");
  }
}

/**
 * The router dies here and now: all its calls break, and its instances are alone with what they were told. KV that
 * prefill pushed, or may still push, must be in the books of a decode instance that will claim, release or restart.
 */
function survives(traits: LegTraits, { prefill, decode, abandonedAs }: World): void {
  // What is pulled is kept by the prefill engine, and freed by its lease.
  if (!traits.decodeFirst || prefill === "none" || prefill === "nothing-sent") return;
  assert.notEqual(decode, "none", "KV without a decode instance that knows of it");
  assert.notEqual(decode, "asked", "prefill runs, and whether decode takes the leg is open");
  // Held, started, cut or failed by itself: it asks prefill for the outcome, or its engine has the KV.
  assert.notEqual(abandonedAs, "nothing-sent", "KV may come, and its decode instance was told that none does");
}

export interface Exploration {
  readonly states: number;
  readonly steps: number;
  readonly longest: number;
}

export function explore(traits: LegTraits, machine: typeof step = step): Exploration {
  const nodes = new Map<string, Node>([[key(START), START]]);
  const next = new Map<string, Set<string>>();
  const queue = [START];
  let steps = 0;
  for (let node = queue.shift(); node !== undefined; node = queue.shift()) {
    const from = key(node);
    const successors = new Set<string>();
    let moved = false;
    next.set(from, successors);
    const possible = moves(node);
    for (const move of possible) {
      steps += 1;
      try {
        const taken = machine(traits, node.machine, move.event);
        const world = taken.effects.reduce((now, effect) => apply(traits, now, effect), move.world);
        const reached: Node = { machine: taken.state, world };
        check(traits, reached, move.event, node.world, taken);
        const to = key(reached);
        if (to !== from) successors.add(to);
        if (to !== from && !move.optional) moved = true;
        if (!nodes.has(to)) {
          nodes.set(to, reached);
          queue.push(reached);
        }
      } catch (cause) {
        throw new Error(`${(cause as Error).message}: ${move.event.kind} in ${from}`, { cause });
      }
    }
    // Something that must come is always on its way, or all is over: no state waits for ever.
    if (node.machine.kind !== "ended") assert.ok(moved, `nothing ends ${from}`);
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

function key({ machine, world }: Node): string {
  return JSON.stringify([machine, world]);
}
