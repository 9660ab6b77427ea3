import assert from "node:assert/strict";
import { isStuck, type LegSample } from "../../services/decode/stuck.ts";
import {
  leg,
  openDecode,
  prefillLeg,
  refusal,
  settled,
  simDecode,
  simPrefill,
  type DecodeCall,
} from "../instance/legs.ts";
import { manualClock, type ManualClock } from "../support/manual-clock.ts";
import { eventually, untilQuiet, within } from "../support/waits.ts";

const STALL_MS = 15_000;

describe("a leg that gets no token for stall_ms", () => {
  const quiet: LegSample = {
    nowMs: 100_000,
    sinceMs: 100_000 - STALL_MS,
    maybeLong: false,
    engineMovedMs: 99_500,
    waiting: 0,
    stallMs: STALL_MS,
  };

  it("is stuck while its engine goes on with others", () => {
    assert.ok(isStuck(quiet));
    assert.ok(!isStuck({ ...quiet, sinceMs: quiet.sinceMs + 1 }));
  });

  it("is not stuck where nothing moves: then the engine is", () => {
    assert.ok(!isStuck({ ...quiet, engineMovedMs: quiet.nowMs - STALL_MS / 2 }));
    assert.ok(!isStuck({ ...quiet, engineMovedMs: -Infinity }));
  });

  it("is not stuck while it may wait: for room in the engine, for its KV, for a prompt that decode computes or KV from a new partner", () => {
    assert.ok(!isStuck({ ...quiet, waiting: 1 }));
    assert.ok(!isStuck({ ...quiet, maybeLong: true }));
  });
});

describe("one stuck sequence while its engine goes on with others", () => {
  /** Seconds of the instance's clock until the leg ended. In each of them the other leg gets a token at least. */
  async function secondsUntilEnd(clock: ManualClock, ended: Promise<unknown>, other: DecodeCall): Promise<number> {
    let over = false;
    void ended.finally(() => (over = true)).catch(() => {});
    let tokens = 0;
    const reading = (async () => {
      for (let message = await other.next(); message !== undefined; message = await other.next())
        tokens += message.tokenCount;
    })();
    for (let seconds = 0; !over && seconds < 40; seconds++) {
      const before = tokens;
      await Promise.race([reading, eventually("a token", () => tokens > before)]);
      clock.advance(1_000);
      await untilQuiet();
      if (over) return seconds + 1;
    }
    throw new Error("it did not end");
  }

  for (const { name, fields, fault } of [
    { name: "an answer in one piece", fields: { stream: false }, fault: "stall:after_tokens=3:count=1" },
    { name: "an answer in one piece, at once", fields: { stream: false }, fault: "stall:count=1" },
    { name: "a stream", fields: {}, fault: "stall:after_tokens=3:count=1" },
  ]) {
    it(`ends ${name} within stall_ms and 2 s, and nothing else`, async () => {
      const clock = manualClock();
      await using prefill = await simPrefill();
      // Shipped defaults.
      await using decode = await simDecode("p2p-zmq", {}, { decodeMsPerToken: 5 }, clock);
      const start = async (more: object): Promise<DecodeCall> => {
        const pair = leg({ max_tokens: 8_000, ignore_eos: true, ...more });
        const call = openDecode(decode);
        call.reserve(pair, prefill);
        await call.next();
        call.start((await prefillLeg(prefill, decode, pair)).ticket);
        return call;
      };
      const other = await start({});
      await other.next();
      decode.engine.setFault(fault);
      const stuck = await start(fields);
      await eventually("both run", () => decode.engine.state().running === 2);
      const ended = stuck.rest();
      const seconds = await secondsUntilEnd(clock, ended, other);
      const code = fault.includes("after") ? "engine_failed" : "kv_transfer_failed";
      await assert.rejects(within(ended, "the end"), refusal(code));
      assert.ok(seconds >= 15 && seconds <= 17, `after ${seconds} s`);
      assert.equal(decode.instance.supervisor.restarts, 0);
      assert.equal(decode.engine.state().running, 1);
      other.abandon();
      await settled(decode);
    });
  }
});
