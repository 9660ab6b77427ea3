// A blocking query in a loop: reports Consul's state, and every change within milliseconds.
// Source: https://developer.hashicorp.com/consul/api-docs/features/blocking: reset an index that goes backwards, never
// wait on index 0, limit the rate only when values churn.
import type Consul from "consul";
import { type Clock, pause, systemClock } from "../common/clock.ts";
import { backoffMs, background } from "../common/lifecycle.ts";
import type { ConsulCallOptions, ConsulClient } from "./consul-client.ts";
import { asConsulError, ConsulError, lacksPolicy } from "./consul-error.ts";

export interface BlockingQuery<T> {
  readonly client: ConsulClient;
  /** One call of the package, with `options` among its own: `index` and `wait` make it wait. */
  ask(consul: Consul, options: QueryOptions): Promise<T>;
  /** The policy that the token lacks if Consul reports that it left something out. */
  readonly policy: string;
  /**
   * @param gap Consul was away since the last answer, or began to count anew: what is missing now may only be forgotten.
   */
  onChange(body: T, gap: boolean): void;
  /** After each answer, with or without news, and after each failure. */
  onHealth(error: ConsulError | undefined): void;
  /** Default 10000: a hung agent is noticed within this time plus a fifth. */
  readonly waitMs?: number;
  readonly clock?: Clock;
}

export interface QueryOptions extends ConsulCallOptions {
  readonly index?: string;
  readonly wait?: string;
}

const RETRY = { minMs: 50, maxMs: 2_000 };
/** Answers in a burst that are asked for without a pause, and how soon one more is allowed. */
const BURST = 4;
const REFILL_MS = 50;
/** Values that churn cost a twentieth of a core at most: a list of hundreds takes milliseconds to read. */
const COST_FACTOR = 20;

/** Watches until it is disposed of. */
export function watchConsul<T>(o: BlockingQuery<T>): AsyncDisposable {
  return background((stop) => keepAsking(o, stop));
}

async function keepAsking<T>(o: BlockingQuery<T>, stop: AbortSignal): Promise<void> {
  const { waitMs = 10_000, clock = systemClock } = o;
  const pace = createPace(clock);
  let index = 0n;
  let gap = false;
  for (let failures = 0; !stop.aborted; ) {
    try {
      const waiting = index === 0n ? {} : { index: String(index), wait: `${waitMs}ms` };
      const { body, headers } = await o.client.ask((consul, call) => o.ask(consul, { ...call, ...waiting }), {
        // Consul adds up to a sixteenth to the wait, so that watchers don't come back together.
        timeoutMs: index === 0n ? 5_000 : waitMs * 1.0625 + 1_500,
        signal: stop,
      });
      const stated = String(headers["x-consul-index"]);
      if (!/^\d+$/.test(stated))
        throw new ConsulError("refused", "Consul's answer has no index: is this its HTTP port?");
      if (headers["x-consul-results-filtered-by-acls"] === "true")
        throw lacksPolicy(o.policy, ": Consul leaves out what it may not see");
      const next = stated === "0" ? 1n : BigInt(stated);
      const first = index === 0n;
      if (next < index) {
        index = 0n;
        gap = true;
        continue;
      }
      const news = first || next !== index;
      index = next;
      failures = 0;
      const sinceMs = clock.nowMs();
      if (news) {
        o.onChange(body, gap);
        gap = false;
      }
      o.onHealth(undefined);
      await pace(clock.nowMs() - sinceMs, stop);
    } catch (error) {
      if (stop.aborted) return;
      // Asked without an index, Consul answers at once when it is back.
      index = 0n;
      gap = true;
      o.onHealth(asConsulError(error));
      await pause(clock, backoffMs(failures++, RETRY), stop);
    }
  }
}

/** A token bucket: the first answers of a burst go through, then one each REFILL_MS, or later where they cost much. */
function createPace(clock: Clock): (costMs: number, stop: AbortSignal) => Promise<void> {
  let tokens = BURST;
  let lastMs = clock.nowMs();
  return async (costMs, stop) => {
    const nowMs = clock.nowMs();
    const refillMs = Math.max(REFILL_MS, costMs * COST_FACTOR);
    tokens = Math.min(BURST, tokens + (nowMs - lastMs) / refillMs) - 1;
    lastMs = nowMs;
    if (tokens < 0) await pause(clock, -tokens * refillMs, stop);
  };
}
