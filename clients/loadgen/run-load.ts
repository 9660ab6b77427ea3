// One load against one server, and its results.
import { Agent } from "node:http";
import { Agent as TlsAgent } from "node:https";
import { integer, milliseconds, number } from "../../services/common/config.ts";
import { closedLoop, openLoop, poissonArrivals, seededRandom } from "./arrivals.ts";
import { goodput, summarise, type Slo } from "./statistics.ts";
import { streamRequest, type StreamResult } from "./stream-request.ts";

export interface LoadShape {
  readonly model: string;
  readonly requests: number;
  /** Concurrent streams (closed loop), if `rate` is 0. */
  readonly streams: number;
  /** Requests per second with Poisson arrivals (open loop). 0: closed loop. */
  readonly rate: number;
  /** The streams of a closed loop start within this time. */
  readonly rampMs: number;
  /** Tokens of an answer. The requests make the engine generate exactly this many. */
  readonly tokens: number;
  /** Words of a prompt; about as many tokens. */
  readonly promptWords: number;
  readonly seed: number;
}

/** The settings of a load, by their names in `LoadShape`, with these defaults. */
export function loadSettings(d: Pick<LoadShape, "requests" | "streams" | "rampMs" | "tokens" | "promptWords">) {
  return {
    requests: integer("requests", "Number of requests, in compare per round.", {
      default: d.requests,
      min: 1,
      max: 10_000_000,
    }),
    streams: integer("streams", "Concurrent streams, if no rate is given.", {
      default: d.streams,
      min: 1,
      max: 65_536,
    }),
    rate: number("rate", "Poisson arrivals at this rate, regardless of how many requests are running. 0: off.", {
      default: 0,
      min: 0,
      unit: "requests/s",
    }),
    rampMs: milliseconds("ramp_ms", "The streams start within this time. 0: all at once, which measures a burst.", {
      default: d.rampMs,
      max: Infinity,
      min: 0,
    }),
    tokens: integer("tokens", "Length of an answer.", { default: d.tokens, min: 1, max: 1_000_000, unit: "tokens" }),
    promptWords: integer("prompt.words", "Length of a prompt.", {
      default: d.promptWords,
      min: 1,
      max: 1_000_000,
      unit: "words",
    }),
    seed: integer("seed", "Seed of prompts and arrivals.", { default: 1, min: 0 }),
  };
}

export interface LoadResult {
  readonly results: readonly StreamResult[];
  readonly elapsedMs: number;
}

/** @param ca PEM of the authorities of the server's certificate, for an https URL. */
export async function runLoad(url: string, load: LoadShape, apiKey = "", ca?: string): Promise<LoadResult> {
  const { requests, rate, seed } = load;
  const pooled = { keepAlive: true, maxSockets: Infinity };
  const agent = ca === undefined ? new Agent(pooled) : new TlsAgent({ ...pooled, ca });
  const target = apiKey === "" ? { url, agent } : { url, agent, apiKey };
  // Bodies are made before the clock runs.
  const bodies = Array.from({ length: requests }, (_, index) => requestBody(load, index));
  const run = (index: number): Promise<StreamResult> => streamRequest(target, bodies[index]!);
  const startMs = performance.now();
  try {
    const results =
      rate > 0
        ? await openLoop(poissonArrivals(requests, rate, seededRandom(seed)), run)
        : await closedLoop(requests, load.streams, run, load.rampMs);
    return { results, elapsedMs: performance.now() - startMs };
  } finally {
    agent.destroy();
  }
}

const WORDS =
  "the river carries light over stone while old boats wait for wind and someone counts the slow bells of evening".split(
    " ",
  );

/**
 * Body of request `index`. Each has its own prompt, so that no prefix cache of an engine can answer it. An index always
 * has the same prompt, so that two servers can be compared word by word.
 */
function requestBody({ model, tokens, promptWords, seed }: LoadShape, index: number): string {
  const random = seededRandom(seed * 1_000_003 + index);
  const words = [`${index}:`];
  while (words.length < promptWords) words.push(WORDS[Math.floor(random() * WORDS.length)]!);
  return JSON.stringify({
    model,
    prompt: words.join(" "),
    max_tokens: tokens,
    temperature: 0,
    ignore_eos: true,
    stream: true,
    stream_options: { include_usage: true },
  });
}

export type LoadReport = ReturnType<typeof reportOf>;

/** The times in a report, and their names in tables. */
export const TIMES = [
  ["ttft", "TTFT"],
  ["itl", "ITL"],
  ["tpot", "TPOT"],
  ["endToEnd", "end to end"],
] as const;

/** Combines several rounds of the same load. Times in milliseconds. */
export function reportOf(rounds: readonly LoadResult[], slo: Slo = {}) {
  const all = rounds.flatMap((round) => round.results);
  const completed = all.filter((result) => result.completed);
  const elapsedMs = rounds.reduce((sum, round) => sum + round.elapsedMs, 0);
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
    tokensPerS: completed.reduce((sum, result) => sum + result.tokens, 0) / (elapsedMs / 1000),
    /** Requests per second within the SLOs. */
    goodputPerS: goodput(all, slo, elapsedMs),
  };
}
