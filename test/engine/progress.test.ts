import assert from "node:assert/strict";
import { progressJudge, type Progress, type ProgressSample } from "../../services/engine/progress.ts";

const TICK_MS = 500;
const STALL_MS = 2_000;
const KV_WAIT_MS = 20_000;

const whyOf = (progress: Progress): string | undefined => (progress.kind === "wedged" ? progress.why : undefined);

/** Ticks until it is judged wedged, or `limitMs` have passed. Returns how long that took. */
function wedgedAfter(sampleAt: (ms: number) => Omit<ProgressSample, "nowMs">, limitMs = 60_000): number | undefined {
  const judge = progressJudge({ stallMs: STALL_MS, kvWaitMs: KV_WAIT_MS, tickMs: TICK_MS });
  for (let ms = 0; ms <= limitMs; ms += TICK_MS) {
    if (judge({ nowMs: 1_000_000 + ms, ...sampleAt(ms) }).kind === "wedged") return ms;
  }
  return undefined;
}
const STALLED = { promptTokens: 7, generationTokens: 7, deferred: 0 };
const decoding = (legs: number, generationTokens: number): Omit<ProgressSample, "nowMs"> => ({
  legs,
  promptTokens: 0,
  counted: { ...STALLED, generationTokens },
});

describe("the judge of an engine's progress", () => {
  it("finds an engine that has work and counts no token, when the stall is too long", () => {
    assert.equal(
      wedgedAfter(() => decoding(3, 7)),
      STALL_MS,
    );
    assert.equal(
      wedgedAfter((ms) => decoding(1, ms < 10_000 ? ms : 10_000)),
      10_000 + STALL_MS,
    );
  });

  it("believes a stall sooner while a partner of the engine is dead, with a little time for prompts", () => {
    const judged = (partnerIsGone: boolean, promptTokens: number, legTokensPerMs = 0): number | undefined => {
      const judge = progressJudge({ stallMs: 15_000, kvWaitMs: 0, tickMs: TICK_MS });
      for (let nowMs = 0; nowMs < 60_000; nowMs += TICK_MS)
        if (judge({ nowMs, ...decoding(2, 7), promptTokens, partnerIsGone, legTokensPerMs }).kind === "wedged")
          return nowMs;
      return undefined;
    };
    assert.deepEqual([judged(false, 0), judged(true, 0)], [15_000, 1_000]);
    assert.deepEqual([judged(false, 100), judged(true, 100)], [19_000, 3_000]);
    // Its legs have shown that it computes 200 tokens a second: then 15 s hold more than these need.
    assert.deepEqual([judged(false, 100, 0.2), judged(true, 100, 0.2)], [15_000, 2_000]);
    // It comes to the dead partner's KV after these prompts, and hangs then.
    assert.equal(judged(true, 100_000), 4_000);
  });

  it("has doubts from the death of a partner on, until the engine moves", () => {
    const judge = progressJudge({ stallMs: 15_000, kvWaitMs: 0, tickMs: TICK_MS });
    const at = (nowMs: number, generationTokens: number, partnerIsGone: boolean, legs = 2): string =>
      judge({ nowMs, ...decoding(legs, generationTokens), partnerIsGone }).kind;
    assert.equal(at(0, 7, false), "sound");
    assert.equal(at(500, 7, false), "sound");
    // It has stood still for 5 s, for a long prompt perhaps: that was before.
    for (let nowMs = 1_000; nowMs <= 5_000; nowMs += TICK_MS) assert.equal(at(nowMs, 7, false), "sound");
    // What was counted before the death shows nothing.
    assert.equal(at(5_400, 8, true), "doubtful");
    assert.equal(at(5_650, 8, true), "doubtful");
    assert.equal(at(5_900, 9, true), "sound");
    assert.equal(at(6_150, 9, true), "sound");
    // The KV for the dead partner may be sent later.
    assert.equal(at(6_400, 9, true), "doubtful");
    assert.equal(at(6_650, 9, false), "sound", "its legs to the dead partner have ended");
    assert.equal(at(6_900, 9, true), "doubtful");
    assert.equal(at(7_650, 9, true), "doubtful");
    assert.equal(at(7_900, 9, true), "wedged");
  });

  it("takes no report for progress that was asked for before the death of the partner", () => {
    const judge = progressJudge({ stallMs: 15_000, kvWaitMs: 0, tickMs: TICK_MS });
    const at = (nowMs: number, askedMs: number, tokens: number): string =>
      judge({ nowMs, askedMs, ...decoding(2, tokens), partnerIsGone: nowMs >= 1_000 }).kind;
    assert.equal(at(500, 500, 7), "sound");
    assert.equal(at(1_000, 500, 7), "doubtful");
    assert.equal(at(1_250, 900, 8), "doubtful");
    // The first one after it: what it counts may have been computed before.
    assert.equal(at(1_500, 1_250, 9), "doubtful");
    assert.equal(at(1_750, 1_500, 9), "doubtful");
    assert.equal(at(2_000, 1_750, 9), "wedged", "a second after the death");
    const other = progressJudge({ stallMs: 15_000, kvWaitMs: 0, tickMs: TICK_MS });
    const then = (nowMs: number, tokens: number): string =>
      other({ nowMs, askedMs: nowMs, ...decoding(2, tokens), partnerIsGone: nowMs >= 1_000 }).kind;
    assert.deepEqual([then(500, 7), then(1_000, 8), then(1_250, 9)], ["sound", "doubtful", "doubtful"]);
    assert.equal(then(1_500, 10), "sound");
  });

  it("adds up over requests that are taken away again, where that is wanted, until a token comes", () => {
    // A second with a request, nine without.
    const foundMs = (stallsAddUp: boolean, tokenAtMs = Infinity): number | undefined => {
      const judge = progressJudge({ stallMs: 4_000, kvWaitMs: 0, tickMs: TICK_MS, stallsAddUp });
      for (let ms = 0; ms < 200_000; ms += TICK_MS) {
        const sample = decoding(ms % 10_000 < 1_500 ? 1 : 0, ms < tokenAtMs ? 7 : 8);
        if (judge({ nowMs: 1_000_000 + ms, ...sample }).kind === "wedged") return ms;
      }
      return undefined;
    };
    assert.equal(foundMs(false), undefined);
    const ms = foundMs(true)!;
    assert.ok(ms >= 20_000 && ms <= 50_000, `${ms}`);
    assert.ok(foundMs(true, 15_000)! >= ms + 10_000);
  });

  it("names the length of the stall and the requests that wait", () => {
    const judge = progressJudge({ stallMs: STALL_MS, kvWaitMs: KV_WAIT_MS, tickMs: TICK_MS });
    let told: string | undefined;
    for (let nowMs = 0; told === undefined; nowMs += TICK_MS) told = whyOf(judge({ nowMs, ...decoding(2, 7) }));
    assert.equal(told, "wedged: no token for 2.0 s with 2 requests in it");
  });

  it("finds an engine that answers no request at all", () => {
    assert.equal(
      wedgedAfter((ms) => ({
        legs: 1,
        promptTokens: 0,
        counted: ms < 3_000 ? { ...STALLED, generationTokens: ms } : undefined,
      })),
      4_500,
    );
  });

  it("leaves an engine alone that has nothing to do, or counts however slowly", () => {
    assert.equal(
      wedgedAfter(() => decoding(0, 7)),
      undefined,
    );
    assert.equal(
      wedgedAfter((ms) => decoding(1, Math.floor(ms / 1_500))),
      undefined,
    );
    // Work that comes and goes is no work that waits.
    assert.equal(
      wedgedAfter((ms) => decoding(ms % 1_500 === 0 ? 0 : 1, 7)),
      undefined,
    );
  });

  it("gives prompts the time that their length needs", () => {
    // 1,000 tokens at 100 a second, four times over, before any rate was seen.
    const fresh = wedgedAfter(() => ({ legs: 1, promptTokens: 1_000, counted: STALLED }))!;
    assert.equal(fresh, 40_000 + STALL_MS);
    // At an observed 10,000 a second it is found in seconds.
    const seen = wedgedAfter((ms) => ({
      legs: 1,
      promptTokens: 1_000,
      counted: { ...STALLED, promptTokens: Math.min(ms, 20_000) * 10 },
    }))!;
    assert.equal(seen, 20_000 + STALL_MS);
  });

  it("gives prompts no time on top of the longest stall once their rate is known", () => {
    // 1,000 tokens a second, and then 64 prompts of 100 tokens, which need 6.4 s: four times that.
    const queued = (rate: number, tokens: number) =>
      wedgedAfter((ms) => ({
        legs: 64,
        promptTokens: tokens,
        counted: { ...STALLED, promptTokens: (Math.min(ms, 20_000) * rate) / 1_000 },
      }))! - 20_000;
    assert.ok(Math.abs(queued(1_000, 6_400) - 25_600) <= 1_000, `${queued(1_000, 6_400)}`);
    // 0.4 s of prompts: the longest stall holds four times that.
    assert.equal(queued(1_000, 400), STALL_MS);
  });

  it("takes no engine for slow because little was asked of it", () => {
    // A prompt of 200 tokens each second, answered in 10 ms; then 64 of them at once, and the engine hangs.
    const busy = wedgedAfter((ms) => ({
      legs: ms < 20_000 ? 1 : 64,
      promptTokens: ms < 20_000 ? 200 : 12_800,
      legTokensPerMs: 20,
      counted: { ...STALLED, promptTokens: Math.floor(Math.min(ms, 20_000) / 1_000) * 200 },
    }))!;
    assert.ok(busy <= 20_000 + STALL_MS + 1_000, `${busy}`);
  });

  it("does not take a wait for KV for a stall: the wait has its own bound, also for the requests that it holds up", () => {
    const waiting = (legs: number, deferred: number) =>
      wedgedAfter(() => ({ legs, promptTokens: 0, counted: { ...STALLED, deferred } }));
    assert.equal(waiting(1, 1), STALL_MS + KV_WAIT_MS);
    assert.equal(waiting(3, 1), STALL_MS + KV_WAIT_MS);
    assert.equal(waiting(3, 0), STALL_MS);
    // Its own report may be held up as well.
    const unreported = { legs: 3, promptTokens: 0, firstTransfers: 1, counted: { ...STALLED, deferred: 0 } };
    assert.equal(
      wedgedAfter(() => unreported),
      STALL_MS + KV_WAIT_MS,
    );
    // KV that came within the bound moves the engine on, and a stall after it is found as any other.
    const moved = wedgedAfter((ms) => ({
      legs: 2,
      promptTokens: 0,
      counted: { ...STALLED, deferred: ms < 15_000 ? 1 : 0, generationTokens: ms < 15_000 ? 7 : 8 },
    }));
    assert.equal(moved, 15_000 + STALL_MS);
  });

  it("believes no old report of a wait for KV: an engine that is frozen meanwhile is found as any other", () => {
    const frozen = wedgedAfter((ms) => ({
      legs: 2,
      promptTokens: 0,
      askedMs: 1_000_000 + Math.min(ms, 1_000),
      counted: { ...STALLED, deferred: 1, generationTokens: Math.min(ms, 1_000) },
    }));
    assert.equal(frozen, 1_000 + STALL_MS);
  });

  it("names the wait for KV if it took too long", () => {
    const judge = progressJudge({ stallMs: STALL_MS, kvWaitMs: 0, tickMs: TICK_MS });
    let told: string | undefined;
    for (let nowMs = 0; told === undefined; nowMs += TICK_MS)
      told = whyOf(judge({ nowMs, legs: 2, promptTokens: 0, counted: { ...STALLED, deferred: 1 } }));
    assert.equal(told, "wedged: no token for 2.0 s with 2 requests in it, 1 waiting for KV");
  });

  it("waits no longer for prompts that queue behind a wedge", () => {
    const found = wedgedAfter((ms) => ({ legs: 1 + ms, promptTokens: 100 + ms * 100, counted: STALLED }))!;
    assert.equal(found, 4_000 + STALL_MS);
  });

  it("blames no engine for a pause of its own process", () => {
    const judge = progressJudge({ stallMs: STALL_MS, kvWaitMs: KV_WAIT_MS, tickMs: TICK_MS });
    const at = (nowMs: number): string | undefined => whyOf(judge({ nowMs, ...decoding(1, 7) }));
    assert.equal(at(0), undefined);
    assert.equal(at(500), undefined);
    assert.equal(at(60_000), undefined);
    assert.equal(at(60_500), undefined);
    for (let nowMs = 61_000; nowMs < 62_000; nowMs += 500) assert.equal(at(nowMs), undefined);
    assert.notEqual(at(62_000), undefined);
  });
});
