// Ids whose KV was claimed, released or given up, as long as KV may still arrive under them.
import type { Clock } from "../../common/clock.ts";

/** Longer than a connection survives on a silent link: Linux gives up retransmitting after about this time. */
const KEPT_MS = 15 * 60_000;
/** At about 150 bytes each. Of more, the oldest are forgotten, and KV under those waits for its lease. */
const LIMIT = 16_384;

/**
 * The ids under which KV may travel: an engine-level id, and the X-Request-Id from which it was made: `cmpl-<id>-0`,
 * `chatcmpl-<id>`, `1_chatcmpl-<id>`.
 */
export function requestIdsOf(id: string): readonly string[] {
  const inner = id.replace(/^(\d+_)?(chat)?cmpl-/, "");
  return [id, inner, inner.replace(/-\d+$/, "")];
}

export function createSettledIds(clock: Clock) {
  /** By id, in the order of its values. */
  const untilMs = new Map<string, number>();
  return {
    add(id: string): void {
      const nowMs = clock.nowMs();
      untilMs.delete(id);
      untilMs.set(id, nowMs + KEPT_MS);
      for (const [oldest, endMs] of untilMs) {
        if (untilMs.size <= LIMIT && endMs > nowMs) break;
        untilMs.delete(oldest);
      }
    },
    /** Whether KV under this engine-level id has no use. */
    has: (id: string): boolean => requestIdsOf(id).some((one) => (untilMs.get(one) ?? 0) > clock.nowMs()),
  };
}
