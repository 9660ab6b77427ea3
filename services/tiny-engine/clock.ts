// The engine's clock: the system's, except that a wait of 0 ms takes no time. setTimeout never waits less
// than a millisecond, which would make an engine with a decode time of 0 a thousand times slower.
import { systemClock, type Clock } from "../common/clock.ts";

export const engineClock: Clock = {
  nowMs: () => systemClock.nowMs(),
  setTimer(ms, fn) {
    if (ms >= 0.5) return systemClock.setTimer(ms, fn);
    const immediate = setImmediate(fn);
    return { cancel: () => clearImmediate(immediate) };
  },
};
