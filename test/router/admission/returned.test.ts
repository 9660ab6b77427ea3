import assert from "node:assert/strict";
import { Deadlines } from "../../../services/common/deadlines.ts";
import { ServiceError } from "../../../services/common/errors.ts";
import { type Admission, createAdmission } from "../../../services/router/admission/admission.ts";
import { manualClock, type ManualClock } from "../../support/manual-clock.ts";

const TIMEOUT_MS = 1_000;

interface Queue {
  readonly admission: Admission;
  readonly clock: ManualClock;
  readonly log: string[];
  readonly looks: { count: number };
  /** Slots that are free. */
  free: number;
  /** Admits a request, one leg of which returns. Ends the wait. */
  enter(name: string, o?: { priority?: number; othersRun?: () => boolean }): Promise<(() => void) | undefined>;
}

function queueWith(free = 0): Queue {
  const clock = manualClock();
  const admission = createAdmission({
    capacity: () => 10_000,
    queue: { current: { limit: 8, timeoutMs: TIMEOUT_MS, targetMs: 0 } },
    clock,
    deadlines: new Deadlines(clock),
  });
  const queue: Queue = {
    admission,
    clock,
    log: [],
    looks: { count: 0 },
    free,
    async enter(name, { priority = 0, othersRun = () => false } = {}) {
      const admitted = await admission.acquire(new AbortController().signal, { model: "m", priority });
      const pick = (): number => {
        queue.looks.count += 1;
        if (queue.free === 0) throw new ServiceError("instance_busy", "Busy.");
        return (queue.free -= 1);
      };
      return admitted.findSlot(
        { pick, found: () => queue.log.push(name), failed: ({ code }) => queue.log.push(`${name}:${code}`) },
        () => (othersRun() ? undefined : 0),
      );
    },
  };
  return queue;
}

describe("a leg that found every instance busy", () => {
  it("does not wait if a slot is free by now", async () => {
    const queue = queueWith(1);
    await queue.enter("a");
    assert.deepEqual([queue.log, queue.admission.waiting], [["a"], 0]);
  });

  it("gets the next free slot before legs that returned after it", async () => {
    const queue = queueWith();
    for (const name of "abcd") await queue.enter(name);
    assert.equal(queue.admission.waiting, 4);
    queue.free = 2;
    queue.admission.poke();
    assert.deepEqual(queue.log, ["a", "b"]);
    queue.free = 9;
    queue.admission.poke();
    assert.deepEqual([queue.log, queue.admission.waiting], [["a", "b", "c", "d"], 0]);
  });

  it("keeps its priority", async () => {
    const queue = queueWith();
    await queue.enter("later", { priority: 5 });
    await queue.enter("sooner", { priority: -5 });
    queue.free = 1;
    queue.admission.poke();
    assert.deepEqual(queue.log, ["sooner"]);
  });

  it("is forgotten when its request ends", async () => {
    const queue = queueWith();
    const end = await queue.enter("a");
    await queue.enter("b");
    end!();
    queue.free = 9;
    queue.admission.poke();
    queue.clock.advance(2 * TIMEOUT_MS);
    assert.deepEqual([queue.log, queue.admission.waiting], [["b"], 0]);
  });

  it("waits for the time that its request has left in the queue, and no longer", async () => {
    const clock = manualClock();
    let capacity = 0;
    const admission = createAdmission({
      capacity: () => capacity,
      queue: { current: { limit: 8, timeoutMs: TIMEOUT_MS, targetMs: 0 } },
      clock,
      deadlines: new Deadlines(clock),
    });
    const admitting = admission.acquire(new AbortController().signal, { model: "m" });
    clock.advance(700);
    capacity = 1;
    admission.poke();
    const admitted = await admitting;
    const failures: string[] = [];
    const busy = (): never => {
      throw new ServiceError("instance_busy", "Busy.");
    };
    admitted.findSlot({ pick: busy, found() {}, failed: ({ message }) => failures.push(message) }, () => 0);
    clock.advance(299);
    assert.deepEqual(failures, []);
    clock.advance(1);
    assert.deepEqual(failures, ["Busy."]);
  });

  it("does not run out of time while another leg of its request may free a slot", async () => {
    const queue = queueWith();
    let othersRun = true;
    await queue.enter("a", { othersRun: () => othersRun });
    queue.clock.advance(5 * TIMEOUT_MS);
    assert.deepEqual(queue.log, []);
    othersRun = false;
    queue.clock.advance(TIMEOUT_MS);
    assert.deepEqual(queue.log, ["a:instance_busy"]);
  });

  it("costs little while no slot is free, even if many legs wait", async () => {
    const queue = queueWith();
    for (let count = 0; count < 1_000; count += 1) await queue.enter("a");
    queue.looks.count = 0;
    queue.admission.poke();
    assert.ok(queue.looks.count < 10, `${queue.looks.count} looks`);
  });

  it("fails with an error that a wait can't cure", async () => {
    const queue = queueWith();
    await queue.enter("a");
    Object.defineProperty(queue, "free", {
      get: () => {
        throw new ServiceError("no_instance", "Gone.");
      },
    });
    queue.admission.poke();
    assert.deepEqual(queue.log, ["a:no_instance"]);
  });
});
