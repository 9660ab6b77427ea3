import assert from "node:assert/strict";
import { ServiceError } from "../../../services/common/errors.ts";
import { createAdmission, type Admission } from "../../../services/router/admission/admission.ts";
import { manualClock, type ManualClock } from "../../support/manual-clock.ts";

const never = new AbortController().signal;

function setUp(o: { capacity?: number; queueLimit?: number } = {}): { admission: Admission; clock: ManualClock; room: { capacity: number } } {
  const clock = manualClock();
  const room = { capacity: o.capacity ?? 1 };
  const admission = createAdmission({ capacity: () => room.capacity, queueLimit: o.queueLimit ?? 8, queueTimeoutMs: 1000, clock });
  return { admission, clock, room };
}

const code = (expected: string) => (error: unknown) => error instanceof ServiceError && error.code === expected;

describe("admission", () => {
  it("lets a request start at once while there is room", async () => {
    const { admission, clock } = setUp({ capacity: 2 });
    const places = [await admission.acquire(never), await admission.acquire(never)];
    assert.deepEqual(places.map(({ waitedMs }) => waitedMs), [0, 0]);
    assert.equal(admission.running, 2);
    assert.equal(clock.pending, 0, "no timer for a request that does not wait");
  });

  it("serves those that wait in the order of their coming, and says how long they waited", async () => {
    const { admission, clock } = setUp();
    const first = await admission.acquire(never);
    const order: string[] = [];
    const waits = ["b", "c"].map((name) => admission.acquire(never).then((place) => (order.push(name), place)));
    await clock.pass(40);
    first.release();
    const second = await waits[0]!;
    assert.deepEqual(order, ["b"]);
    assert.equal(second.waitedMs, 40);
    second.release();
    await waits[1];
    assert.deepEqual(order, ["b", "c"]);
    assert.equal(clock.pending, 0);
  });

  it("refuses one more than may wait, with a time to try again", async () => {
    const { admission } = setUp({ queueLimit: 1 });
    await admission.acquire(never);
    void admission.acquire(never);
    await assert.rejects(admission.acquire(never), (error: ServiceError) => {
      assert.equal(error.code, "queue_full");
      assert.equal(error.retryAfterS, 1);
      return true;
    });
    assert.equal(admission.waiting, 1);
  });

  it("refuses at once where nobody may wait", async () => {
    const { admission } = setUp({ queueLimit: 0 });
    await admission.acquire(never);
    await assert.rejects(admission.acquire(never), code("queue_full"));
  });

  it("gives up after the queue's timeout and says so", async () => {
    const { admission, clock } = setUp();
    await admission.acquire(never);
    const late = assert.rejects(admission.acquire(never), (error: ServiceError) => {
      assert.equal(error.code, "instance_busy");
      assert.match(error.message, /1000 ms in the queue/);
      return true;
    });
    await clock.pass(1000);
    await late;
    assert.equal(admission.waiting, 0);
  });

  it("frees the place of a client that leaves the queue at once", async () => {
    const { admission, clock } = setUp({ queueLimit: 1 });
    const running = await admission.acquire(never);
    const client = new AbortController();
    const left = assert.rejects(admission.acquire(client.signal), code("cancelled"));
    client.abort();
    await left;
    assert.equal(admission.waiting, 0);
    const next = admission.acquire(never);
    running.release();
    (await next).release();
    assert.equal(admission.running, 0);
    assert.equal(clock.pending, 0);
  });

  it("refuses a client that left before it came", async () => {
    await assert.rejects(setUp().admission.acquire(AbortSignal.abort()), code("cancelled"));
  });

  it("lets waiting ones start when the pool grows", async () => {
    const { admission, room } = setUp({ capacity: 0 });
    const waiting = [admission.acquire(never), admission.acquire(never)];
    room.capacity = 2;
    admission.poke();
    await Promise.all(waiting);
    assert.equal(admission.running, 2);
  });

  it("does not let small requests overtake a large one for ever", async () => {
    const { admission } = setUp({ capacity: 4 });
    const small = await admission.acquire(never, 2);
    let largeRuns = false;
    const large = admission.acquire(never, 4).then((place) => ((largeRuns = true), place));
    const behind = admission.acquire(never, 1);
    small.release();
    (await large).release();
    assert.ok(largeRuns);
    await behind;
  });

  it("lets a request that is larger than all room run alone", async () => {
    const { admission } = setUp({ capacity: 2 });
    const place = await admission.acquire(never, 5);
    let other = false;
    void admission.acquire(never).then(() => (other = true));
    await Promise.resolve();
    assert.equal(other, false);
    place.release();
    await new Promise(setImmediate);
    assert.equal(other, true);
  });

  it("lets the one behind a large request that left start", async () => {
    const { admission } = setUp({ capacity: 2 });
    await admission.acquire(never);
    const client = new AbortController();
    const large = assert.rejects(admission.acquire(client.signal, 2), code("cancelled"));
    const small = admission.acquire(never);
    client.abort();
    await large;
    await small;
  });

  it("takes a place back once, however often it is released", async () => {
    const { admission } = setUp({ capacity: 2 });
    const place = await admission.acquire(never);
    await admission.acquire(never);
    place.release();
    place.release();
    assert.equal(admission.running, 1);
  });
});
