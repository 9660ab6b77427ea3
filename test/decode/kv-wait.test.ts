// A decode engine that waits for KV is not wedged: over a real sim whose partner never answers its handshake.
import assert from "node:assert/strict";
import { leg, prefillLeg, reserved, simDecode, simPrefill } from "../instance/legs.ts";

describe("a decode engine whose partner does not answer", () => {
  it("outlives its longest stall many times, and only the leg fails", async function () {
    this.timeout(60_000);
    await using prefill = await simPrefill("nixl", {}, { faults: ["silent-kv"] });
    await using decode = await simDecode("nixl", { stall_ms: 1_000 }, { handshakeTimeoutMs: 5_000 });
    const engine = decode.instance.supervisor.live;
    const pair = leg();
    const { ticket } = await prefillLeg(prefill, undefined, pair);
    const call = await reserved(decode, prefill, pair);
    call.start(ticket);
    const ended = await call.rest().catch((error: unknown) => (error as { code?: string }).code);
    assert.equal(ended, "kv_transfer_failed");
    assert.equal(decode.instance.supervisor.live, engine, "the same engine");
  });
});
