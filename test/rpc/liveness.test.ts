// The rule of silence by itself, on a clock of the test's.
import assert from "node:assert/strict";
import { setImmediate } from "node:timers/promises";
import { PACE, type HeartbeatPace, watchLiveness } from "../../services/rpc/liveness.ts";
import { manualClock } from "../support/manual-clock.ts";

/** A peer, and what is found of it: "suspect 1250" is 1250 ms after the start. `answers` to each question at once. */
function watch({
  answers = false,
  pace = PACE,
  patienceMs = () => 0,
}: {
  answers?: boolean;
  pace?: HeartbeatPace;
  patienceMs?: () => number;
} = {}) {
  const clock = manualClock(0);
  const peer = { bytes: 0, asked: 0, answers };
  const found: string[] = [];
  const note = (what: string): void => void found.push(`${what} ${clock.nowMs()}`);
  const stop = watchLiveness(
    {
      bytesRead: () => peer.bytes,
      ask() {
        peer.asked++;
        if (peer.answers) peer.bytes++;
      },
      patienceMs,
      onSuspect: (suspect) => note(suspect ? "suspect" : "heard"),
      onSilent: () => note("silent"),
    },
    clock,
    pace,
  );
  return { clock, peer, found, stop };
}

describe("a peer", () => {
  it("is asked at once, and then each beat, whether it answers or not", async () => {
    const { clock, peer } = watch();
    assert.equal(peer.asked, 1);
    await clock.pass(499);
    assert.equal(peer.asked, 1);
    await clock.pass(1_001);
    assert.equal(peer.asked, 4);
  });

  it("that answers is neither suspect nor silent", async () => {
    const { clock, found } = watch({ answers: true });
    await clock.pass(60_000);
    assert.deepEqual(found, []);
  });

  it("that never answers is suspect within 1.3 s and silent within 2 s, and is not asked any more", async () => {
    const { clock, peer, found } = watch();
    await clock.pass(10_000);
    assert.deepEqual(found, ["suspect 1250", "silent 2000"]);
    assert.deepEqual([peer.asked, clock.pending], [5, 0]);
  });

  it("is silent within 2 s of its last byte, at any time between two questions", async () => {
    for (let lastMs = 1_000; lastMs < 1_500; lastMs += 30) {
      const { clock, peer, found } = watch({ answers: true });
      await clock.pass(lastMs - 1);
      peer.answers = false;
      await clock.pass(1);
      peer.bytes++;
      await clock.pass(10_000);
      const [suspectMs, silentMs] = found.map((event) => Number(event.split(" ")[1]) - lastMs);
      assert.ok(suspectMs! <= 1_300 && suspectMs! > 1_300 - 250, `suspect after ${suspectMs} ms`);
      assert.ok(silentMs! <= 2_000 && silentMs! > 2_000 - 250, `silent after ${silentMs} ms`);
    }
  });

  it("is alive as long as any byte comes, even without answers", async () => {
    const { clock, peer, found } = watch();
    for (let count = 0; count < 20; count++) {
      await clock.pass(1_000);
      peer.bytes++;
    }
    assert.deepEqual(found, []);
  });

  it("is trusted again when a byte comes, and can become suspect again", async () => {
    const { clock, peer, found } = watch();
    await clock.pass(1_400);
    peer.bytes++;
    await clock.pass(1_800);
    assert.deepEqual(found, ["suspect 1250", "heard 1500", "suspect 2625"]);
  });

  it("is not held responsible for a pause of this process, however long", async () => {
    for (const pauseMs of [600, 3_000, 3_600_000]) {
      const { clock, peer, found } = watch({ answers: true });
      await clock.pass(1_000);
      peer.answers = false;
      await clock.pass(600);
      clock.stall(pauseMs);
      peer.answers = true;
      await clock.pass(10_000);
      assert.deepEqual(found, [], `${pauseMs} ms`);
    }
  });

  it("that is silent after a pause of this process is noticed as soon as without the pause", async () => {
    const { clock, found } = watch();
    await clock.pass(1_000);
    clock.stall(5_000);
    await clock.pass(10_000);
    assert.deepEqual(found, ["suspect 6125", "silent 6875"]);
  });

  it("has 2 s in which this process ran: a starved process takes longer for its verdict", async () => {
    const { clock, found } = watch();
    // Each timer runs 125 ms late, and the process gets half of the time.
    for (let tick = 0; tick < 20; tick++) {
      clock.stall(250);
      await setImmediate();
    }
    assert.deepEqual(found, ["suspect 2500", "silent 4000"]);
  });

  it("has more time while the observer has reasons for patience, and no longer", async () => {
    let patienceMs = 4_000;
    const { clock, found } = watch({ patienceMs: () => patienceMs });
    await clock.pass(5_000);
    assert.deepEqual(found, ["suspect 1250"]);
    patienceMs = 0;
    await clock.pass(125);
    assert.deepEqual(found.slice(1), ["silent 5125"]);
    const patient = watch({ patienceMs: () => 4_000 });
    await patient.clock.pass(10_000);
    assert.deepEqual(patient.found, ["suspect 1250", "silent 6000"]);
  });

  it("has its whole time for an answer to a question that was asked late", async () => {
    const { clock, peer, found } = watch({ answers: true });
    await clock.pass(400);
    peer.answers = false;
    clock.stall(490); // Less than counts as a pause. The question of 500 is asked at 890.
    await clock.pass(10_000);
    assert.deepEqual(found, ["suspect 1640", "silent 2390"]);
  });

  it("may have answered while timers ran: its socket is read before the verdict", async () => {
    const { clock, peer, found } = watch();
    clock.advance(1_250); // In one turn, and no socket is read in between.
    peer.bytes++;
    await clock.pass(500);
    assert.deepEqual(found, []);
  });

  it("is not watched any more once the watch is ended", async () => {
    const { clock, peer, found, stop } = watch();
    await clock.pass(1_000);
    stop();
    await clock.pass(10_000);
    assert.deepEqual([found, peer.asked, clock.pending], [[], 3, 0]);
  });
});
