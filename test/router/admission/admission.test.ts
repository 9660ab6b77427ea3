import assert from "node:assert/strict";
import { Deadlines } from "../../../services/common/deadlines.ts";
import { setMaxListeners } from "node:events";
import { ServiceError } from "../../../services/common/errors.ts";
import { createAdmission, type Admission, type Refusal } from "../../../services/router/admission/admission.ts";
import { manualClock, type ManualClock } from "../../support/manual-clock.ts";

const never = new AbortController().signal;
setMaxListeners(0, never);

interface SetUp {
  readonly admission: Admission;
  readonly clock: ManualClock;
  readonly room: { capacity: number };
  /** Why requests got no place, in their order. */
  readonly refused: readonly Refusal[];
}

function setUp(
  o: {
    capacity?: number;
    queueLimit?: number;
    queueTimeoutMs?: number;
    lack?: () => string | undefined;
    lackEnd?: () => { text: string; inMs: number } | undefined;
  } = {},
): SetUp {
  const clock = manualClock();
  const room = { capacity: o.capacity ?? 1 };
  const refused: Refusal[] = [];
  const admission = createAdmission({
    capacity: () => room.capacity,
    queue: { current: { limit: o.queueLimit ?? 8, timeoutMs: o.queueTimeoutMs ?? 1000, targetMs: 0 } },
    onRefused: (because) => refused.push(because),
    clock,
    deadlines: new Deadlines(clock),
    ...(o.lack === undefined ? {} : { lack: o.lack }),
    ...(o.lackEnd === undefined ? {} : { lackEnd: o.lackEnd }),
  });
  return { admission, clock, room, refused };
}

const code = (expected: string) => (error: unknown) => error instanceof ServiceError && error.code === expected;

describe("admission", () => {
  it("lets a request start at once while slots are free", async () => {
    const { admission, clock } = setUp({ capacity: 2 });
    const places = [await admission.acquire(never), await admission.acquire(never)];
    assert.deepEqual(
      places.map(({ waitedMs }) => waitedMs),
      [0, 0],
    );
    assert.equal(admission.running, 2);
    assert.equal(clock.pending, 0, "no timer for a request that does not wait");
  });

  it("serves waiting requests in the order of their arrival, and reports their wait", async () => {
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

  it("refuses a request beyond the queue's limit, with a time to try again", async () => {
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

  it("refuses at once if the queue's limit is 0", async () => {
    const { admission } = setUp({ queueLimit: 0 });
    await admission.acquire(never);
    await assert.rejects(admission.acquire(never), code("queue_full"));
  });

  it("refuses a request after the queue's timeout, with the reason", async () => {
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

  it("frees the slot of a client that leaves the queue at once", async () => {
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

  it("refuses a request whose client has already left", async () => {
    await assert.rejects(setUp().admission.acquire(AbortSignal.abort()), code("cancelled"));
  });

  it("lets waiting requests start when the pool grows", async () => {
    const { admission, room } = setUp({ capacity: 0 });
    const waiting = [admission.acquire(never), admission.acquire(never)];
    room.capacity = 2;
    admission.poke();
    await Promise.all(waiting);
    assert.equal(admission.running, 2);
  });

  it("does not let small requests overtake a large one for ever", async () => {
    const { admission } = setUp({ capacity: 4 });
    const small = await admission.acquire(never, { legs: 2 });
    let largeRuns = false;
    const large = admission.acquire(never, { legs: 4 }).then((place) => ((largeRuns = true), place));
    const behind = admission.acquire(never, { legs: 1 });
    small.release();
    (await large).release();
    assert.ok(largeRuns);
    await behind;
  });

  it("lets a request with more legs than slots run alone", async () => {
    const { admission } = setUp({ capacity: 2 });
    const place = await admission.acquire(never, { legs: 5 });
    let other = false;
    void admission.acquire(never).then(() => (other = true));
    await Promise.resolve();
    assert.equal(other, false);
    place.release();
    await new Promise(setImmediate);
    assert.equal(other, true);
  });

  it("lets the request behind a large one start when that one leaves", async () => {
    const { admission } = setUp({ capacity: 2 });
    await admission.acquire(never);
    const client = new AbortController();
    const large = assert.rejects(admission.acquire(client.signal, { legs: 2 }), code("cancelled"));
    const small = admission.acquire(never);
    client.abort();
    await large;
    await small;
  });

  it("takes slots back once, even if they are released twice", async () => {
    const { admission } = setUp({ capacity: 2 });
    const place = await admission.acquire(never);
    await admission.acquire(never);
    place.release();
    place.release();
    assert.equal(admission.running, 1);
  });

  it("keeps the slots of models apart", async () => {
    const clock = manualClock();
    const room: Record<string, number> = { big: 1, small: 1 };
    const admission = createAdmission({
      capacity: (model) => room[model]!,
      queue: { current: { limit: 8, timeoutMs: 1000, targetMs: 0 } },
      clock,
      deadlines: new Deadlines(clock),
    });
    const big = await admission.acquire(never, { model: "big" });
    let behind = false;
    const waits = admission.acquire(never, { model: "big" }).then(() => (behind = true));
    await admission.acquire(never, { model: "small" });
    assert.equal(behind, false);
    big.release();
    await waits;
  });

  it("refuses the last request of the tenant with the most waiting ones when another tenant finds the queue full", async () => {
    const { admission } = setUp({ queueLimit: 3 });
    await admission.acquire(never);
    const waits = [1, 2, 3].map(() => admission.acquire(never, { tenant: "a" }));
    const other = admission.acquire(never, { tenant: "b" });
    await assert.rejects(waits[2]!, code("queue_full"));
    assert.equal(admission.waiting, 3);
    await assert.rejects(admission.acquire(never, { tenant: "a" }), code("queue_full"));
    void other;
  });

  it("refuses a request early that can't start before its deadline, with a time to try again", async () => {
    const { admission, clock, refused } = setUp({ queueLimit: 64 });
    let place = await admission.acquire(never);
    const waits = Array.from({ length: 8 }, () => admission.acquire(never));
    for (let count = 0; count < 8; count += 1) {
      // One place comes free every 100 ms, while others wait.
      await clock.pass(100);
      const next = admission.acquire(never);
      next.catch(() => {});
      waits.push(next);
      place.release();
      place = await waits[count]!;
    }
    assert.equal(admission.waiting, 8);
    const late = admission.acquire(never, { deadlineMs: clock.nowMs() + 300 });
    await assert.rejects(late, (error: ServiceError) => {
      assert.equal(error.code, "queue_full");
      assert.match(error.message, /before its deadline: it would wait about \d+ ms, and has 300 ms left\./);
      assert.ok(error.retryAfterS! >= 1);
      return true;
    });
    assert.deepEqual(refused, ["deadline_foreseen"]);
    const able = admission.acquire(never, { deadlineMs: clock.nowMs() + 5_000 });
    able.catch(() => {});
    assert.equal(admission.waiting, 9);
  });

  it("ends a wait with the request's deadline, and names the queue", async () => {
    const { admission, clock } = setUp();
    await admission.acquire(never);
    const late = assert.rejects(
      admission.acquire(never, { deadlineMs: clock.nowMs() + 200 }),
      (error: ServiceError) => {
        assert.equal(error.code, "deadline_exceeded");
        assert.match(error.message, /queue 200 ms/);
        return true;
      },
    );
    await clock.pass(200);
    await late;
  });

  it("names the lack if all instances leave while a request waits", async () => {
    const { admission, clock, refused } = setUp({ capacity: 0, lack: () => "No decode instance is registered." });
    const late = assert.rejects(admission.acquire(never), (error: ServiceError) => {
      assert.equal(error.code, "no_instance");
      assert.match(error.message, /No decode instance is registered/);
      return true;
    });
    await clock.pass(1000);
    await late;
    assert.deepEqual(refused, ["no_instance"]);
  });

  it("reports one reason for each request that is refused, and none for the others", async () => {
    const { admission, clock, refused } = setUp({ queueLimit: 2 });
    const running = await admission.acquire(never);
    const client = new AbortController();
    const ask = (tenant: string, o: { signal?: AbortSignal; deadlineMs?: number } = {}): Promise<boolean> =>
      admission.acquire(o.signal ?? never, { tenant, deadlineMs: o.deadlineMs }).then(
        () => true,
        () => false,
      );
    const asked = [ask("a", { signal: client.signal }), ask("a")];
    asked.push(ask("a")); // One too many.
    asked.push(ask("b")); // Takes the place of the second.
    client.abort();
    asked.push(ask("c", { deadlineMs: clock.nowMs() + 10 }));
    await clock.pass(10);
    await clock.pass(1000);
    assert.deepEqual(
      await Promise.all(asked),
      asked.map(() => false),
    );
    assert.deepEqual(refused, ["queue_full", "displaced", "client_left", "deadline_passed", "queue_timeout"]);
    const next = ask("d");
    running.release();
    assert.equal(await next, true);
    assert.equal(refused.length, asked.length);
  });
});

describe("a request for a model that is loading", () => {
  const loading = (inMs: number) => (): { text: string; inMs: number } => ({ text: "It is loading.", inMs });
  const refusedFor =
    (retryAfterS: number) =>
    (error: unknown): boolean =>
      code("no_instance")(error) &&
      (error as ServiceError).message === "It is loading." &&
      (error as ServiceError).retryAfterS === retryAfterS;

  it("waits, and starts when the model has loaded", async () => {
    const { admission, clock, room } = setUp({ capacity: 0, lackEnd: loading(900) });
    const waiting = admission.acquire(never);
    await clock.pass(900);
    room.capacity = 1;
    admission.poke();
    assert.equal((await waiting).waitedMs, 900);
  });

  it("is told when to come back, if it may not wait that long or the queue is full", async () => {
    const long = setUp({ capacity: 0, lackEnd: loading(90_000) });
    await assert.rejects(long.admission.acquire(never), refusedFor(90));
    const short = setUp({ capacity: 0, queueLimit: 1, lackEnd: loading(900) });
    await assert.rejects(short.admission.acquire(never, { deadlineMs: short.clock.nowMs() + 800 }), refusedFor(1));
    const gone = new AbortController();
    const waiting = short.admission.acquire(gone.signal);
    await assert.rejects(short.admission.acquire(never), refusedFor(1));
    assert.deepEqual(short.refused, ["no_instance", "no_instance"]);
    gone.abort();
    await assert.rejects(waiting, code("cancelled"));
  });

  it("is refused soon after nothing is loading any more", async () => {
    let lackEnd: { text: string; inMs: number } | undefined = { text: "It is loading.", inMs: 900 };
    const { admission, clock, refused } = setUp({ capacity: 0, lack: () => "It is out.", lackEnd: () => lackEnd });
    const waiting = assert.rejects(
      admission.acquire(never, { deadlineMs: clock.nowMs() + 900 }),
      /ran past its deadline/,
    );
    lackEnd = undefined;
    await clock.pass(900);
    await waiting;
    const long = setUp({ capacity: 0, queueTimeoutMs: 30_000, lack: () => "It is out.", lackEnd: () => lackEnd });
    lackEnd = { text: "It is loading.", inMs: 900 };
    const second = assert.rejects(long.admission.acquire(never), /It is out\. The request waited 2000 ms\./);
    await long.clock.pass(1_500);
    lackEnd = undefined;
    await long.clock.pass(500);
    await second;
    assert.deepEqual([refused, long.refused], [["deadline_passed"], ["no_instance"]]);
  });

  it("is told the new time if it has waited in vain", async () => {
    const { admission, clock } = setUp({ capacity: 0, lack: () => "It is out.", lackEnd: loading(1_000) });
    const waiting = assert.rejects(
      admission.acquire(never),
      /^ServiceError: It is loading\. The request waited 1000 ms\. Try again later\.$/,
    );
    await clock.pass(1_000);
    await waiting;
  });
});
