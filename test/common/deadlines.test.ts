import assert from "node:assert/strict";
import { seededRandom } from "../../clients/loadgen/arrivals.ts";
import type { Clock } from "../../services/common/clock.ts";
import { Deadlines } from "../../services/common/deadlines.ts";
import { manualClock } from "../support/manual-clock.ts";

describe("the queue of deadlines", () => {
  it("calls each at its time, in order of time, and the older first of two at once", () => {
    const clock = manualClock(0);
    const deadlines = new Deadlines(clock);
    const called: string[] = [];
    const note = (name: string) => () => void called.push(`${name} ${clock.nowMs()}`);
    deadlines.at(300, note("c"));
    deadlines.at(100, note("a"));
    deadlines.at(300, note("d"));
    deadlines.at(200, note("b"));
    deadlines.at(Infinity, note("never"));
    clock.advance(299);
    assert.deepEqual(called, ["a 100", "b 200"]);
    clock.advance(1_000_000);
    assert.deepEqual(called, ["a 100", "b 200", "c 300", "d 300"]);
    assert.equal(deadlines.size, 0);
  });

  it("arms one timer for any number of deadlines, and none without one", () => {
    const clock = manualClock(0);
    const deadlines = new Deadlines(clock);
    assert.equal(clock.pending, 0);
    const all = Array.from({ length: 1_000 }, (_, index) => deadlines.at(10_000 - index, () => {}));
    assert.equal(clock.pending, 1);
    for (const deadline of all) deadline.cancel();
    assert.equal(clock.pending, 0);
    assert.equal(deadlines.size, 0);
  });

  it("forgets one that is cancelled, also from within another, and twice", () => {
    const clock = manualClock(0);
    const deadlines = new Deadlines(clock);
    const second = deadlines.at(100, () => assert.fail("cancelled"));
    const first = deadlines.at(50, () => second.cancel());
    clock.advance(1_000);
    first.cancel();
    second.cancel();
  });

  it("asks one that moves only when its old time is reached", () => {
    const clock = manualClock(0);
    const deadlines = new Deadlines(clock);
    let heardMs = 0;
    const looks: number[] = [];
    deadlines.watch(100, (nowMs) => {
      looks.push(nowMs);
      return nowMs < heardMs + 100 ? heardMs + 100 : undefined;
    });
    for (let token = 0; token < 990; token += 1) {
      clock.advance(1);
      heardMs = clock.nowMs();
    }
    assert.ok(looks.length <= 10, `${looks.length} looks for 990 tokens`);
    clock.advance(1_000);
    assert.equal(looks.at(-1), 1_090);
    assert.equal(deadlines.size, 0);
  });

  it("does not starve the others if one asks again for a time that has passed", () => {
    const clock = manualClock(0);
    const deadlines = new Deadlines(clock);
    let looks = 0;
    const restless = deadlines.watch(10, () => ((looks += 1), 0));
    let called = false;
    deadlines.at(20, () => (called = true));
    clock.advance(20);
    assert.ok(called);
    assert.equal(looks, 11);
    restless.cancel();
  });

  it("goes on after one that throws", () => {
    const clock = manualClock(0);
    const deadlines = new Deadlines(clock);
    let called = false;
    deadlines.at(10, () => {
      throw new Error("a bug");
    });
    deadlines.at(20, () => (called = true));
    assert.throws(() => clock.advance(10), /a bug/);
    clock.advance(10);
    assert.ok(called);
  });

  it("runs none once it is closed", () => {
    const clock = manualClock(0);
    const deadlines = new Deadlines(clock);
    deadlines.at(10, () => deadlines[Symbol.dispose]());
    deadlines.at(10, () => assert.fail("closed"));
    clock.advance(10);
    deadlines.at(30, () => assert.fail("closed"));
    assert.equal(clock.pending, 0);
  });

  it("does not mistake a pause of its own process for silence: pending data is read first", () => {
    const inner = manualClock(0);
    let pausedMs = 0;
    const clock: Clock = { nowMs: () => inner.nowMs() + pausedMs, setTimer: inner.setTimer };
    const deadlines = new Deadlines(clock);
    let heardMs = 0;
    let silent = false;
    deadlines.watch(2_000, (nowMs) => {
      if (nowMs < heardMs + 2_000) return heardMs + 2_000;
      silent = true;
      return undefined;
    });
    inner.advance(1_000);
    pausedMs = 5_000;
    inner.advance(1_000);
    assert.equal(silent, false);
    heardMs = clock.nowMs();
    inner.advance(1_000);
    assert.equal(silent, false);
    inner.advance(1_100);
    assert.equal(silent, true, "and what stays silent is found");
  });

  it("waits after a pause until timers are punctual again, for a second at most", () => {
    const clock = manualClock(0);
    const deadlines = new Deadlines(clock);
    let ranMs = 0;
    deadlines.at(100, () => (ranMs = clock.nowMs()));
    clock.stall(1_000);
    for (let turn = 0; turn < 5; turn++) clock.stall(100); // It reads what has piled up.
    assert.equal(ranMs, 0);
    clock.advance(50);
    assert.equal(ranMs, 1_550);
    deadlines.at(2_000, () => (ranMs = clock.nowMs()));
    clock.stall(1_450);
    while (ranMs < 2_000) clock.stall(100);
    assert.equal(ranMs, 3_000 + 20 * 100);
  });

  it("keeps the order of a sorted list while deadlines are added, cancelled and moved", () => {
    const clock = manualClock(0);
    const deadlines = new Deadlines(clock);
    const random = seededRandom(5);
    const due = new Map<number, number>();
    for (let id = 0; id < 2_000; id += 1) {
      let atMs = clock.nowMs() + Math.floor(random() * 1_000);
      due.set(id, atMs);
      let moves = Math.floor(random() * 3);
      const deadline = deadlines.watch(atMs, (nowMs) => {
        assert.equal(nowMs, atMs);
        if (moves-- > 0) {
          due.set(id, (atMs = nowMs + 1 + Math.floor(random() * 500)));
          return atMs;
        }
        due.delete(id);
        return undefined;
      });
      if (random() < 0.3) {
        deadline.cancel();
        due.delete(id);
      }
      if (random() < 0.1) clock.advance(Math.floor(random() * 20));
      assert.equal(deadlines.size, due.size);
    }
    clock.advance(10_000);
    assert.equal(due.size, 0);
  });
});
