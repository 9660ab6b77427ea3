// Waits for a change that no event reports.
import { setTimeout as sleep } from "node:timers/promises";

/** Whether `condition` holds within `limitMs`. It is checked every `everyMs`, the first time at once. */
export async function becomesTrue(
  limitMs: number,
  everyMs: number,
  condition: () => boolean | Promise<boolean>,
): Promise<boolean> {
  const endMs = performance.now() + limitMs;
  while (!(await condition())) {
    if (performance.now() > endMs) return false;
    await sleep(everyMs);
  }
  return true;
}
