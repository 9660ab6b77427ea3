// Statistics of many measurements: percentiles, and the share of requests that were fast enough.

export type Summary = ReturnType<typeof summarise>;

/**
 * Linear between the two nearest ranks, as numpy and vLLM's benchmark do, so that figures can be compared.
 *
 * @param sorted Ascending.
 * @param share 0 to 1.
 * @returns NaN without measurements, because a made-up 0 would look like a very good result.
 */
export function percentile(sorted: ArrayLike<number>, share: number): number {
  if (sorted.length === 0) return Number.NaN;
  const rank = (sorted.length - 1) * share;
  const below = Math.floor(rank);
  const low = sorted[below]!;
  const high = sorted[Math.min(below + 1, sorted.length - 1)]!;
  return low + (high - low) * (rank - below);
}

export function summarise(values: readonly number[]) {
  const sorted = Float64Array.from(values).sort();
  return {
    count: sorted.length,
    mean: sorted.reduce((sum, value) => sum + value, 0) / sorted.length,
    p50: percentile(sorted, 0.5),
    p95: percentile(sorted, 0.95),
    p99: percentile(sorted, 0.99),
    max: percentile(sorted, 1),
  };
}

/** The figures of one request that goodput needs. Times in milliseconds. */
export interface Timed {
  readonly completed: boolean;
  readonly ttftMs: number;
  /** NaN if the answer had fewer than two tokens; then only TTFT counts. */
  readonly tpotMs: number;
}

/** Service level objectives in milliseconds; absent means any time will do. */
export interface Slo {
  readonly ttftMs?: number | undefined;
  readonly tpotMs?: number | undefined;
}

/** Requests per second that completed within every SLO, as vLLM's benchmark counts goodput. */
export function goodput(requests: readonly Timed[], slo: Slo, elapsedMs: number): number {
  const good = requests.filter(
    ({ completed, ttftMs, tpotMs }) =>
      completed &&
      (slo.ttftMs === undefined || ttftMs <= slo.ttftMs) &&
      (slo.tpotMs === undefined || Number.isNaN(tpotMs) || tpotMs <= slo.tpotMs),
  );
  return good.length / (elapsedMs / 1000);
}

/** Time per output token after the first: (end-to-end - TTFT) / (tokens - 1). NaN below two tokens. */
export function timePerOutputToken(endToEndMs: number, ttftMs: number, tokens: number): number {
  return tokens < 2 ? Number.NaN : (endToEndMs - ttftMs) / (tokens - 1);
}
