// A blocking query, asked again and again: what Consul knows, and every change of it within milliseconds.
// Source: https://developer.hashicorp.com/consul/api-docs/features/blocking: reset an index that goes backwards, never
// wait on index 0, limit the rate only when values churn.
import { setTimeout as sleep } from "node:timers/promises";
import { backoffMs } from "../common/lifecycle.ts";
import { ConsulError, type ConsulAnswer, type ConsulClient } from "./consul-http.ts";

export interface BlockingQuery {
  readonly client: ConsulClient;
  readonly path: string;
  readonly query?: Readonly<Record<string, string>>;
  /** What the token lacks when Consul says that it left something out. */
  readonly policy: string;
  /**
   * @param gap Consul was away since the last answer, or began to count anew: what is missing now may only be forgotten.
   */
  onChange(answer: ConsulAnswer, gap: boolean): void;
  /** Consul answered, with or without news. */
  onUp(): void;
  onDown(error: ConsulError): void;
  readonly stop: AbortSignal;
  /** Default 10000: so long at most until a hung agent is noticed, plus a fifth. */
  readonly waitMs?: number;
}

const RETRY = { minMs: 50, maxMs: 2_000 };
/** Answers in a burst that are asked for without a pause, and how soon one more is allowed. */
const BURST = 4;
const REFILL_MS = 50;
/** Values that churn cost a twentieth of a core at most: a list of hundreds takes milliseconds to read. */
const COST_FACTOR = 20;

/** Resolves when `stop` aborts. */
export async function watchConsul(o: BlockingQuery): Promise<void> {
  const { stop, waitMs = 10_000 } = o;
  const pace = createPace();
  let index = 0n;
  let gap = false;
  for (let failures = 0; !stop.aborted; ) {
    try {
      const answer = await o.client.get(o.path, {
        query: { ...o.query, ...(index === 0n ? {} : { index: String(index), wait: `${waitMs}ms` }) },
        // Consul adds up to a sixteenth to the wait, so that watchers don't come back together.
        timeoutMs: index === 0n ? 5_000 : waitMs * 1.0625 + 1_500,
        signal: stop,
      });
      if (answer.filtered) throw deniedByFilter(o.policy);
      const next = answer.index < 1n ? 1n : answer.index;
      const first = index === 0n;
      if (next < index) {
        index = 0n;
        gap = true;
        continue;
      }
      const news = first || next !== index;
      index = next;
      failures = 0;
      const sinceMs = performance.now();
      if (news) {
        o.onChange(answer, gap);
        gap = false;
      }
      o.onUp();
      await pace(performance.now() - sinceMs, stop);
    } catch (error) {
      if (stop.aborted) return;
      // Asked without an index, Consul answers at once when it is back.
      index = 0n;
      gap = true;
      o.onDown(
        error instanceof ConsulError ? error : new ConsulError("refused", (error as Error).message, { cause: error }),
      );
      await sleep(backoffMs(failures++, RETRY), undefined, { signal: stop }).catch(() => {});
    }
  }
}

function deniedByFilter(policy: string): ConsulError {
  const message = `The Consul token lacks the policy ${policy}: Consul leaves out what it may not see (docs/consul.md lists what Tandem needs).`;
  return new ConsulError("denied", message, { policy });
}

/** A token bucket: the first answers of a burst go through, then one each REFILL_MS, or later where they cost much. */
function createPace(): (costMs: number, stop: AbortSignal) => Promise<void> {
  let tokens = BURST;
  let lastMs = performance.now();
  return async (costMs, stop) => {
    const nowMs = performance.now();
    const refillMs = Math.max(REFILL_MS, costMs * COST_FACTOR);
    tokens = Math.min(BURST, tokens + (nowMs - lastMs) / refillMs) - 1;
    lastMs = nowMs;
    if (tokens < 0) await sleep(-tokens * refillMs, undefined, { signal: stop }).catch(() => {});
  };
}
