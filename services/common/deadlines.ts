// All deadlines in one queue with one armed timer: ten thousand running answers cost one timer, and none of them pays
// for the timer while tokens arrive. A stream whose deadline moves with every token only notes the time of the token;
// the queue asks for the new deadline when the old one is reached.
import type { Clock, Timer } from "./clock.ts";
import { PUNCTUAL_MS } from "./event-loop.ts";
import { Heap } from "./heap.ts";

export type { Timer as Deadline } from "./clock.ts";

interface Entry extends Timer {
  readonly look: (nowMs: number) => number | undefined;
  atMs: number;
  /** Of two deadlines at the same time, the older one runs first. */
  readonly order: number;
}

/** A timer that fires this late shows that this process was stopped or starved. */
const OWN_PAUSE_MS = 500;
/**
 * Data that arrived meanwhile is read first: only then is it known which peers were silent. The queue waits until the
 * event loop is punctual again, and no longer than so many turns.
 */
const CATCH_UP_MS = 50;
const CATCH_UP_TURNS = 20;

export class Deadlines {
  readonly #clock: Clock;
  readonly #entries = new Heap<Entry>((a, b) => a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order));
  #added = 0;
  #armed: { readonly timer: Timer; readonly atMs: number } | undefined;
  #closed = false;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get size(): number {
    return this.#entries.size;
  }

  /** Calls `fn` once, at clock time `atMs`. Infinity: never. */
  at(atMs: number, fn: () => void): Timer {
    return this.watch(atMs, () => {
      fn();
      return undefined;
    });
  }

  /**
   * Calls `look` at `atMs`.
   *
   * @param look Returns when to call it again, if the deadline has moved. Undefined or Infinity: never.
   */
  watch(atMs: number, look: (nowMs: number) => number | undefined): Timer {
    const entry: Entry = { look, atMs, order: this.#added++, cancel: () => this.#remove(entry) };
    this.#add(entry);
    return entry;
  }

  [Symbol.dispose](): void {
    this.#closed = true;
    this.#disarm();
  }

  #add(entry: Entry): void {
    if (entry.atMs === Infinity) return;
    this.#entries.push(entry);
    this.#arm();
  }

  #remove(entry: Entry): void {
    // The timer stays armed, so that deadlines set and cancelled with every request arm none. The last one cancels it.
    if (this.#entries.remove(entry) && this.#entries.size === 0) this.#disarm();
  }

  #arm(): void {
    const next = this.#entries.first;
    if (next === undefined || this.#closed || (this.#armed !== undefined && this.#armed.atMs <= next.atMs)) return;
    this.#disarm();
    const { atMs } = next;
    const timer = this.#clock.setTimer(Math.max(0, atMs - this.#clock.nowMs()), () => this.#fired(atMs));
    this.#armed = { timer, atMs };
  }

  #disarm(): void {
    this.#armed?.timer.cancel();
    this.#armed = undefined;
  }

  #fired(armedForMs: number): void {
    this.#armed = undefined;
    if (this.#clock.nowMs() - armedForMs <= OWN_PAUSE_MS) this.#run();
    else this.#catchUp(CATCH_UP_TURNS);
  }

  #catchUp(turns: number): void {
    const dueMs = this.#clock.nowMs() + CATCH_UP_MS;
    const timer = this.#clock.setTimer(CATCH_UP_MS, () => {
      this.#armed = undefined;
      if (turns > 1 && this.#clock.nowMs() - dueMs > PUNCTUAL_MS) this.#catchUp(turns - 1);
      else this.#run();
    });
    this.#armed = { timer, atMs: -Infinity };
  }

  #run(): void {
    const nowMs = this.#clock.nowMs();
    try {
      for (;;) {
        const entry = this.#entries.first;
        if (entry === undefined || entry.atMs > nowMs || this.#closed) return;
        this.#entries.remove(entry);
        const againMs = entry.look(nowMs);
        if (againMs === undefined || againMs === Infinity) continue;
        entry.atMs = Math.max(againMs, nowMs + 1);
        this.#entries.push(entry);
      }
    } finally {
      this.#arm();
    }
  }
}
