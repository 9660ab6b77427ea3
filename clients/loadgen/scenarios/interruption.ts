// Measures how long prompts, sent one after the other, change the gaps between tokens of running answers.
import { setTimeout as sleep } from "node:timers/promises";
import { summarise, type Summary } from "../statistics.ts";
import type { StreamResult } from "../stream-request.ts";

export interface InterruptionOptions {
  readonly streams: number;
  readonly prompts: number;
  readonly promptTokens: number;
}

export type Interruption = Awaited<ReturnType<typeof interruption>>;

/** Long enough that some prompt always meets answers that are running. */
const ANSWER_TOKENS = 300;
const SETTLE_MS = 300;
const PAUSE_MS = 250;

/** Times in milliseconds, from the start of the run. */
export async function interruption(
  { streams, prompts, promptTokens }: InterruptionOptions,
  request: (promptTokens: number, tokens: number) => Promise<StreamResult>,
) {
  const startMs = performance.now();
  const gaps: { atMs: number; gapMs: number }[] = [];
  let running = true;
  const stream = async (): Promise<void> => {
    while (running) {
      let atMs = performance.now() - startMs;
      const result = await request(16, ANSWER_TOKENS);
      atMs += result.ttftMs;
      for (const gapMs of result.gapsMs) {
        atMs += gapMs;
        gaps.push({ atMs, gapMs });
      }
    }
  };
  const all = Array.from({ length: streams }, stream);
  await sleep(SETTLE_MS);
  const windows: { fromMs: number; toMs: number }[] = [];
  for (let prompt = 0; prompt < prompts; prompt++) {
    await sleep(PAUSE_MS);
    const fromMs = performance.now() - startMs;
    await request(promptTokens, 1);
    windows.push({ fromMs, toMs: performance.now() - startMs });
  }
  await sleep(PAUSE_MS);
  running = false;
  await Promise.all(all);
  const touches = (atMs: number, gapMs: number): boolean =>
    windows.some(({ fromMs, toMs }) => atMs >= fromMs && atMs - gapMs <= toMs);
  const of = (during: boolean): Summary =>
    summarise(gaps.filter(({ atMs, gapMs }) => touches(atMs, gapMs) === during).map(({ gapMs }) => gapMs));
  return {
    /** Every gap of every stream: its end, and its length. */
    gaps: gaps.sort((a, b) => a.atMs - b.atMs),
    /** When long prompts were computed. */
    windows,
    summary: { before: of(false), during: of(true) },
    /** Mean time to the first token of a long prompt. */
    prefillMs: windows.reduce((sum, { fromMs, toMs }) => sum + toMs - fromMs, 0) / windows.length,
  };
}
