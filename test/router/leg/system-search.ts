// The searches of system.test.ts: all that can become of one attempt, and of two attempts of one request. Each is complete
// for its budget. An attempt's own moves are worked out once, whatever becomes of the other attempt meanwhile.
import assert from "node:assert/strict";
import { System } from "./system.ts";
import {
  type Attempt,
  type Change,
  checkEnd,
  type Kind,
  type Machines,
  START,
  type SystemTraits,
} from "./system-world.ts";

/** How many faults, and wishes of the client or the clock, one search contains. */
export interface Budget {
  readonly faults: number;
  readonly stops: number;
}

export interface Found {
  readonly states: number;
  readonly steps: number;
}

interface Move {
  readonly kind: Kind;
  readonly name: string;
  /** Throws where a promise breaks. */
  to(): Known;
}

/** An attempt in one of its states; equal ones are the same object. */
class Known {
  readonly number: number;
  readonly attempt: Attempt;
  readonly moves: Move[] = [];
  readonly #space: Space;
  readonly #after = new Map<string, Known>();

  constructor(space: Space, number: number, attempt: Attempt) {
    this.#space = space;
    this.number = number;
    this.attempt = attempt;
    space.system.moves(attempt, (kind, name, change) => {
      this.moves.push({ kind, name, to: () => this.after(name, change) });
    });
  }

  after(name: string, change: Change): Known {
    let after = this.#after.get(name);
    if (after === undefined) {
      const attempt = { ...this.attempt };
      change(attempt);
      after = this.#space.known(attempt);
      this.#after.set(name, after);
    }
    return after;
  }
}

class Space {
  readonly system: System;
  readonly #known = new Map<string, Known>();

  constructor(traits: SystemTraits, machines: Machines) {
    this.system = new System(traits, machines);
  }

  known(attempt: Attempt): Known {
    const key = JSON.stringify(attempt);
    let known = this.#known.get(key);
    if (known === undefined) this.#known.set(key, (known = new Known(this, this.#known.size, attempt)));
    return known;
  }

  begin(known: Known): Known {
    return known.after("begin", (attempt) => this.system.route(attempt, { kind: "begin" }));
  }

  unwanted(known: Known): Known {
    return known.after("unwanted", (attempt) => this.system.route(attempt, { kind: "unwanted" }));
  }
}

interface Node extends Budget {
  readonly first: Known;
  readonly second: Known;
}

/** All that can become of one attempt. Throws where a promise breaks, with the way there. */
export function exploreSystem(traits: SystemTraits, machines: Machines, budget: Budget): Found {
  const space = new Space(traits, machines);
  const idle = space.known(START);
  return search(space, { first: space.begin(idle), second: idle, ...budget }, () => {});
}

/**
 * Two attempts of one request on the same instances. `retry`: the second begins when the first has failed, and may still
 * be settling. `hedge`: the second begins beside the first, and the first byte wins.
 */
export function explorePair(traits: SystemTraits, machines: Machines, budget: Budget, how: "retry" | "hedge"): Found {
  const space = new Space(traits, machines);
  const idle = space.known(START);
  return search(space, { first: space.begin(idle), second: idle, ...budget }, (node, push) => {
    const { finished, delivered } = node.first.attempt;
    // A client that has left, or has bytes, gets no further attempt.
    if (node.second !== idle || node.stops < budget.stops || delivered) return;
    const next = (): Node => ({ ...node, second: space.begin(idle) });
    if (how === "hedge" && finished === "no") push("may", "a hedge begins", next);
    if (how === "retry" && finished === "failed") push("must", "a retry begins", next);
  });
}

type Push = (kind: Kind, name: string, take: () => Node) => void;

function moves(space: Space, node: Node, push: Push): void {
  const { first, second } = node;
  const pushFor = (kind: Kind, name: string, take: () => Pick<Node, "first" | "second">): void => {
    if ((kind === "fault" && node.faults === 0) || (kind === "stop" && node.stops === 0)) return;
    push(kind, name, () =>
      settleRace(space, {
        ...take(),
        faults: node.faults - (kind === "fault" ? 1 : 0),
        stops: node.stops - (kind === "stop" ? 1 : 0),
      }),
    );
  };
  for (const move of first.moves) pushFor(move.kind, move.name, () => ({ first: move.to(), second }));
  for (const move of second.moves) pushFor(move.kind, `second: ${move.name}`, () => ({ first, second: move.to() }));
  for (const { kind, name, change } of space.system.shared) {
    const after = (known: Known): Known => (known.attempt.router.kind === "idle" ? known : known.after(name, change));
    pushFor(kind, name, () => ({ first: after(first), second: after(second) }));
  }
}

/** The owner's part: the first byte wins, and the other attempt is given up within the same turn. */
function settleRace(space: Space, node: Node): Node {
  const { first, second } = node;
  const loses = (known: Known): boolean => known.attempt.finished === "no" && known.attempt.router.kind !== "idle";
  assert.ok(!first.attempt.delivered || !second.attempt.delivered, "two attempts answer one client");
  if (first.attempt.delivered && loses(second)) return { ...node, second: space.unwanted(second) };
  if (second.attempt.delivered && loses(first)) return { ...node, first: space.unwanted(first) };
  return node;
}

function search(space: Space, start: Node, others: (node: Node, push: Push) => void): Found {
  const numbers = new Map<number, number>([[key(start), 0]]);
  const nodes = [start];
  const cameFrom: (readonly [number, string])[] = [[-1, "begin"]];
  const next: number[][] = [];
  let steps = 0;
  const way = (number: number): string => {
    const names: string[] = [];
    for (let at = number; at >= 0; at = cameFrom[at]![0]) names.unshift(cameFrom[at]![1]);
    return names.join("; ");
  };
  for (let number = 0; number < nodes.length; number++) {
    const node = nodes[number]!;
    const successors: number[] = [];
    let goesOn = false;
    const push: Push = (kind, name, take) => {
      steps++;
      let reached: Node;
      try {
        reached = take();
      } catch (cause) {
        throw new Error(`${(cause as Error).message}: ${way(number)}; ${name}`, { cause });
      }
      const at = key(reached);
      let to = numbers.get(at);
      if (to === undefined) {
        to = nodes.push(reached) - 1;
        numbers.set(at, to);
        cameFrom.push([number, name]);
      }
      if (to === number) return;
      successors.push(to);
      if (kind === "must") goesOn = true;
    };
    moves(space, node, push);
    others(node, push);
    next.push(successors);
    if (goesOn) continue;
    try {
      for (const { attempt } of [node.first, node.second]) if (attempt.router.kind !== "idle") checkEnd(attempt);
    } catch (cause) {
      throw new Error(`${(cause as Error).message}: ${way(number)}`, { cause });
    }
  }
  checkEnds(next, way);
  return { states: nodes.length, steps };
}

/** Throws where the graph has a cycle: with none, every way through it comes to its end. */
function checkEnds(next: readonly (readonly number[])[], way: (number: number) => string): void {
  const waits = new Uint32Array(next.length);
  for (const successors of next) for (const to of successors) waits[to]!++;
  const open = [0];
  let seen = 0;
  for (let at = open.pop(); at !== undefined; at = open.pop()) {
    seen++;
    for (const to of next[at]!) if (--waits[to]! === 0) open.push(to);
  }
  if (seen < next.length) throw new Error(`a way that never ends: ${way(waits.findIndex((count) => count > 0))}`);
}

/** Of up to a million states of an attempt, and up to seven faults and stops. */
function key({ first, second, faults, stops }: Node): number {
  return (first.number * 2 ** 20 + second.number) * 64 + faults * 8 + stops;
}
