// One load against one server, and its results.
import { Agent } from "node:http";
import { closedLoop, openLoop, poissonArrivals, seededRandom } from "./arrivals.ts";
import { goodput, summarise, type Slo, type Summary } from "./statistics.ts";
import { streamRequest, type StreamResult } from "./stream-request.ts";
import { PATH, requestBody, type WorkloadOptions } from "./workload.ts";

export interface LoadShape {
  readonly requests: number;
  /** Concurrent streams (closed loop), if `ratePerS` is 0. */
  readonly streams: number;
  /** Requests per second with Poisson arrivals (open loop). 0: closed loop. */
  readonly ratePerS: number;
  /** The streams of a closed loop start within this time. */
  readonly rampMs: number;
}

export interface LoadResult {
  readonly results: readonly StreamResult[];
  readonly elapsedMs: number;
}

export async function runLoad(
  url: string,
  apiKey: string,
  workload: WorkloadOptions,
  shape: LoadShape,
): Promise<LoadResult> {
  const agent = new Agent({ keepAlive: true, maxSockets: Infinity });
  const target = apiKey === "" ? { url, agent } : { url, agent, apiKey };
  // Bodies are made before the clock runs.
  const bodies = Array.from({ length: shape.requests }, (_, index) => requestBody(workload, index));
  const run = (index: number): Promise<StreamResult> => streamRequest(target, PATH, bodies[index]!);
  const startMs = performance.now();
  try {
    const results =
      shape.ratePerS > 0
        ? await openLoop(poissonArrivals(shape.requests, shape.ratePerS, seededRandom(workload.seed)), run)
        : await closedLoop(shape.requests, shape.streams, run, shape.rampMs);
    return { results, elapsedMs: performance.now() - startMs };
  } finally {
    agent.destroy();
  }
}

/** Times in milliseconds. */
export interface LoadReport {
  readonly requests: number;
  readonly failed: number;
  readonly errors: readonly string[];
  readonly ttft: Summary;
  readonly tpot: Summary;
  readonly itl: Summary;
  readonly endToEnd: Summary;
  readonly chunks: number;
  readonly requestsPerS: number;
  readonly tokensPerS: number;
  /** Requests per second within the SLOs. */
  readonly goodputPerS: number;
}

/** Combines several rounds of the same load. */
export function reportOf(rounds: readonly LoadResult[], slo: Slo): LoadReport {
  const all = rounds.flatMap((round) => round.results);
  const completed = all.filter((result) => result.completed);
  const elapsedMs = rounds.reduce((sum, round) => sum + round.elapsedMs, 0);
  const tokens = completed.reduce(
    (sum, result) => sum + (Number.isNaN(result.completionTokens) ? result.chunks : result.completionTokens),
    0,
  );
  return {
    requests: all.length,
    failed: all.length - completed.length,
    errors: [...new Set(all.map((result) => result.error).filter((error) => error !== undefined))].slice(0, 5),
    ttft: summarise(completed.map((result) => result.ttftMs)),
    tpot: summarise(completed.map((result) => result.tpotMs).filter((ms) => !Number.isNaN(ms))),
    itl: summarise(completed.flatMap((result) => result.gapsMs)),
    endToEnd: summarise(completed.map((result) => result.endToEndMs)),
    chunks: all.reduce((sum, result) => sum + result.chunks, 0),
    requestsPerS: completed.length / (elapsedMs / 1000),
    tokensPerS: tokens / (elapsedMs / 1000),
    goodputPerS: goodput(all, slo, elapsedMs),
  };
}
