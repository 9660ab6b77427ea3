// A decode engine that waits for KV is not wedged: over a real sim whose partner never answers its handshake.
import assert from "node:assert/strict";
import { nixl } from "../../services/kv/nixl.ts";
import { leg, prefillLeg, refusal, reserved, simDecode, simPrefill, type SimInstance } from "../instance/legs.ts";
import { manualClock } from "../support/manual-clock.ts";
import { deferred, eventually, within } from "../support/waits.ts";

async function startedLeg(prefill: SimInstance, decode: SimInstance): ReturnType<typeof reserved> {
  const pair = leg();
  const { ticket } = await prefillLeg(prefill, undefined, pair);
  const call = await reserved(decode, prefill, pair);
  call.start(ticket);
  return call;
}

describe("a decode engine whose partner does not answer", () => {
  it("outlives its longest stall many times, up to the bound of a first transfer", async () => {
    const clock = manualClock();
    await using prefill = await simPrefill("nixl", {}, { faults: ["silent-kv"] });
    await using decode = await simDecode("nixl", { stall_ms: 4_000 }, { handshakeTimeoutMs: 3_600_000 }, clock);
    const { supervisor } = decode.instance;
    const engine = supervisor.live;
    const ended = assert.rejects((await startedLeg(prefill, decode)).rest(), refusal("engine_failed"));
    await eventually("the leg runs", () => decode.instance.load().running === 1);
    let counted = deferred();
    supervisor.onChange(() => counted.resolve());
    /** From one reading of the engine's counters to the next, four in a stall. */
    const pass = async (ms: number): Promise<void> => {
      for (let passedMs = 0; passedMs < ms && supervisor.live === engine; passedMs += 1_000) {
        counted = deferred();
        clock.advance(1_000);
        await within(counted.promise, "the engine's counters");
      }
    };
    await pass(nixl.traits.firstTransferMs);
    assert.equal(supervisor.live, engine, "the same engine");
    await pass(10_000);
    assert.notEqual(supervisor.live, engine);
    await ended;
  });

  it("goes on when its handshake times out, and only the leg fails", async () => {
    await using prefill = await simPrefill("nixl", {}, { faults: ["silent-kv"] });
    await using decode = await simDecode("nixl", {}, { handshakeTimeoutMs: 50 });
    const engine = decode.instance.supervisor.live;
    await assert.rejects((await startedLeg(prefill, decode)).rest(), refusal("kv_transfer_failed"));
    assert.equal(decode.instance.supervisor.live, engine, "the same engine");
  });
});
