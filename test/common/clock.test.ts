import assert from "node:assert/strict";
import { EventEmitter } from "node:events";
import { pause, settlesWithin, systemClock, until } from "../../services/common/clock.ts";
import { manualClock } from "../support/manual-clock.ts";
import { deferred, within } from "../support/waits.ts";

describe("the system's clock", () => {
  it("tells a time near that of the calendar and runs timers", async () => {
    assert.ok(Math.abs(systemClock.nowMs() - Date.now()) < 1_000);
    const { promise, resolve } = deferred();
    systemClock.setTimer(1, resolve);
    await within(promise, "a timer");
  });

  it("runs what is due now with the next turn of the event loop, not a millisecond later", async () => {
    const ran: string[] = [];
    const { promise, resolve } = deferred();
    systemClock.setTimer(0, () => ran.push("cancelled")).cancel();
    systemClock.setTimer(0, () => ran.push("due now"));
    setImmediate(() => {
      ran.push("next turn");
      resolve();
    });
    await within(promise, "the next turn");
    assert.deepEqual(ran, ["due now", "next turn"]);
  });

  it("cancels timers, and doesn't run a very long one at once", async () => {
    let ran = 0;
    systemClock.setTimer(1, () => ran++).cancel();
    const long = systemClock.setTimer(2 ** 40, () => ran++);
    const { promise, resolve } = deferred();
    systemClock.setTimer(20, resolve);
    await within(promise, "a timer");
    long.cancel();
    long.cancel();
    assert.equal(ran, 0);
  });
});

describe("a clock that the test moves", () => {
  it("runs timers in the order of time, also those that timers set", () => {
    const clock = manualClock(0);
    const seen: string[] = [];
    clock.setTimer(20, () => seen.push(`b ${clock.nowMs()}`));
    clock.setTimer(10, () => {
      seen.push(`a ${clock.nowMs()}`);
      clock.setTimer(5, () => seen.push(`c ${clock.nowMs()}`));
    });
    const never = clock.setTimer(15, () => seen.push("never"));
    never.cancel();
    clock.advance(9);
    assert.deepEqual([seen, clock.nowMs(), clock.pending], [[], 9, 2]);
    clock.advance(100);
    assert.deepEqual([seen, clock.nowMs(), clock.pending], [["a 10", "c 15", "b 20"], 109, 0]);
  });

  it("settles promises between timers if asked to", async () => {
    const clock = manualClock();
    const seen: number[] = [];
    const loop = (async () => {
      for (let round = 0; round < 3; round++) {
        await new Promise<void>((resolve) => clock.setTimer(10, resolve));
        seen.push(clock.nowMs());
      }
    })();
    const startMs = clock.nowMs();
    await clock.pass(30);
    await loop;
    assert.deepEqual(seen, [startMs + 10, startMs + 20, startMs + 30]);
  });
});

describe("a pause", () => {
  it("ends when its time has come, or sooner when it is aborted, and leaves no timer", async () => {
    const clock = manualClock();
    const stop = new AbortController();
    const pauses = [pause(clock, 100), pause(clock, 200, stop.signal)];
    clock.advance(100);
    await pauses[0];
    stop.abort();
    await pauses[1];
    await pause(clock, 300, stop.signal);
    assert.equal(clock.pending, 0);
  });
});

describe("a wait for a state", () => {
  it("ends when the state is reached, at once or at a later change", async () => {
    const source = new EventEmitter<{ change: [] }>();
    let count = 0;
    await within(
      until(source, () => count === 0),
      "a state that is reached already",
    );
    const reached = until(source, () => count === 2);
    for (; count < 2; source.emit("change")) count++;
    await within(reached, "the state");
    assert.equal(source.listenerCount("change"), 0);
  });

  it("ends when it is stopped", async () => {
    const source = new EventEmitter<{ change: [] }>();
    const stop = new AbortController();
    const waiting = until(source, () => false, stop.signal);
    stop.abort();
    await within(waiting, "the end of the wait");
    assert.equal(source.listenerCount("change"), 0);
  });
});

describe("a wait with a limit", () => {
  it("says whether the promise settled in time, resolved or rejected, and leaves no timer", async () => {
    const clock = manualClock();
    assert.equal(await settlesWithin(clock, Promise.resolve(), 100), true);
    assert.equal(await settlesWithin(clock, Promise.reject(new Error("it failed")), 100), true);
    const late = settlesWithin(clock, new Promise(() => {}), 100);
    clock.advance(100);
    assert.equal(await late, false);
    assert.equal(clock.pending, 0);
  });
});
