// The engine's time. Tests pass one that they move; everything else uses the machine's.

/** Milliseconds from an arbitrary start, never going back. */
export interface Clock {
  nowMs(): number;
  /** Runs `task` once after `delayMs`. The result cancels it; cancelling twice is harmless. */
  after(delayMs: number, task: () => void): () => void;
}

export const machineClock: Clock = {
  nowMs: () => performance.now(),
  after(delayMs, task) {
    // setTimeout rounds to whole milliseconds and never waits less than one, which would make an
    // engine with a decode time of 0 a thousand times slower than it has to be.
    if (delayMs < 0.5) {
      const immediate = setImmediate(task);
      return () => clearImmediate(immediate);
    }
    const timer = setTimeout(task, delayMs);
    return () => clearTimeout(timer);
  },
};
