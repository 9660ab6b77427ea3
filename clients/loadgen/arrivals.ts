// When requests are sent. Closed loop: a fixed number of running requests, as in a batch job; it slows down with the
// server and never overloads it. Open loop: at given times regardless of the server, as users do.
import { setTimeout as sleep } from "node:timers/promises";

/** Uniform numbers in [0, 1) that are the same for the same seed (mulberry32), so that a run can be repeated. */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

/**
 * Arrival times of a Poisson process, in milliseconds from its start: gaps are exponential with mean 1000 / ratePerS.
 *
 * @param random Uniform in [0, 1).
 */
export function poissonArrivals(count: number, ratePerS: number, random: () => number): number[] {
  const atMs: number[] = [];
  let nowMs = 0;
  for (let index = 0; index < count; index++) {
    nowMs += (-Math.log(1 - random()) * 1000) / ratePerS;
    atMs.push(nowMs);
  }
  return atMs;
}

/**
 * Runs `count` requests, at most `concurrency` at a time. Resolves with the results in the order of their index.
 *
 * @param rampMs The lanes start one after the other within this time. At 0 all start at once, and stay in step for a
 * long time.
 */
export async function closedLoop<R>(
  count: number,
  concurrency: number,
  run: (index: number) => Promise<R>,
  rampMs = 0,
): Promise<R[]> {
  const results: R[] = new Array<R>(count);
  const lanes = Math.min(concurrency, count);
  let next = 0;
  const lane = async (_: unknown, number: number): Promise<void> => {
    if (rampMs > 0) await sleep((rampMs * number) / lanes);
    while (next < count) {
      const index = next++;
      results[index] = await run(index);
    }
  };
  await Promise.all(Array.from({ length: lanes }, lane));
  return results;
}

/** Runs one request at each time in `atMs` (ascending), regardless of how many are still running. */
export async function openLoop<R>(atMs: readonly number[], run: (index: number) => Promise<R>): Promise<R[]> {
  const startMs = performance.now();
  const running: Promise<R>[] = [];
  for (const [index, dueMs] of atMs.entries()) {
    const waitMs = startMs + dueMs - performance.now();
    if (waitMs > 0) await sleep(waitMs);
    running.push(run(index));
  }
  return Promise.all(running);
}
