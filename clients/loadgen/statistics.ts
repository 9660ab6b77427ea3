// Statistics of many measurements: percentiles, and the share of requests that were fast enough.

export interface Summary {
  readonly count: number;
  readonly mean: number;
  readonly p50: number;
  readonly p95: number;
  readonly p99: number;
  readonly max: number;
}

/**
 * Linear between the two nearest ranks, as numpy and vLLM's benchmark do, so that figures can be compared.
 *
 * @param sorted Ascending.
 * @param share 0 to 1.
 * @returns NaN without measurements, because a made-up 0 would look like a very good result.
 */
export function percentile(sorted: readonly number[], share: number): number {
  if (sorted.length === 0) return Number.NaN;
  const rank = (sorted.length - 1) * share;
  const below = Math.floor(rank);
  const low = sorted[below]!;
  const high = sorted[Math.min(below + 1, sorted.length - 1)]!;
  return low + (high - low) * (rank - below);
}

export function summarise(values: readonly number[]): Summary {
  const sorted = Float64Array.from(values).sort();
  const list = Array.from(sorted);
  let sum = 0;
  for (const value of list) sum += value;
  return {
    count: list.length,
    mean: list.length === 0 ? Number.NaN : sum / list.length,
    p50: percentile(list, 0.5),
    p95: percentile(list, 0.95),
    p99: percentile(list, 0.99),
    max: list.length === 0 ? Number.NaN : list[list.length - 1]!,
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
  readonly ttftMs: number | undefined;
  readonly tpotMs: number | undefined;
}

/** Requests per second that completed within every SLO, as vLLM's benchmark counts goodput. */
export function goodput(requests: readonly Timed[], slo: Slo, elapsedMs: number): number {
  if (elapsedMs <= 0) return 0;
  let good = 0;
  for (const request of requests) if (meets(request, slo)) good++;
  return good / (elapsedMs / 1000);
}

function meets(request: Timed, slo: Slo): boolean {
  if (!request.completed) return false;
  if (slo.ttftMs !== undefined && !(request.ttftMs <= slo.ttftMs)) return false;
  return slo.tpotMs === undefined || Number.isNaN(request.tpotMs) || request.tpotMs <= slo.tpotMs;
}

/** Time per output token after the first: (end-to-end - TTFT) / (tokens - 1). NaN below two tokens. */
export function timePerOutputToken(endToEndMs: number, ttftMs: number, tokens: number): number {
  return tokens < 2 ? Number.NaN : (endToEndMs - ttftMs) / (tokens - 1);
}
