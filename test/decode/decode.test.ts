import assert from "node:assert/strict";
import { FinishReason, leg, openDecode, prefillLeg, simDecode, simPrefill } from "../instance/legs.ts";

describe("a request over both legs, P2P", () => {
  it("streams whole events under the public id and ends with usage", async () => {
    await using prefill = await simPrefill();
    await using decode = await simDecode();
    const pair = leg({ stream_options: { include_usage: true } });
    const call = openDecode(decode);
    call.reserve(pair, prefill);
    assert.equal((await call.next())!.reserved?.holdMs, 30_000);
    const answer = await prefillLeg(prefill, decode, pair);
    assert.ok(answer.promptTokens > 0);
    call.start(answer.ticket, 0);
    const { events, tokens, end } = await call.rest();
    assert.ok(events.endsWith("\n\n"));
    assert.doesNotMatch(events, /prefill_addr|\[DONE\]|127\.0\.0\.1/);
    const chunks = events.trim().split("\n\n").map((event) => JSON.parse(event.slice(6)));
    for (const chunk of chunks) assert.deepEqual([chunk.id, chunk.created], ["cmpl-public", 1_700_000_000]);
    assert.equal(chunks.at(-1).usage.completion_tokens, 6);
    assert.equal(chunks.at(-1).usage.prompt_tokens_details.cached_tokens, 0);
    assert.equal(end!.finishReason, FinishReason.LENGTH);
    assert.equal(end!.promptTokens, answer.promptTokens);
    assert.equal(end!.completionTokens, 6);
    assert.equal(tokens, 6);
    assert.equal(decode.engine.state().kv_orphans, 0);
    assert.equal(decode.instance.load().freeSlots, 256);
  });
});
