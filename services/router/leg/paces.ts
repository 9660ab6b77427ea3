// The pace of each instance, as this router's legs see it: the basis of the learned bounds in bounds.ts. An instance
// that has served few legs is judged by the fleet: by all instances of its role and build.
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import { buildOf } from "../pool/compat.ts";
import type { Instance } from "../pool/pool.ts";

/** Fewer times allow no percentile. */
const ENOUGH = 20;
/** The share of times that counts as usual. */
const USUAL = 0.99;
/** Builds that are remembered. */
const BUILD_LIMIT = 64;
/** Weight of the latest prefill in the rate of a fleet. */
const RATE_WEIGHT = 0.05;
/** Each quicker answer lowers the remembered slow pace by this fraction. */
const ANSWER_FORGOTTEN = 0.02;
/** Shorter answers don't count, because the transfer takes most of their time. */
const ANSWER_TOKENS = 16;

/** Upper edges from 1 ms to 18 minutes. */
const BUCKETS = 42;
/** After so many times all counts are halved, so that the distribution follows the recent past. */
const KEPT = 1_024;

export function bucketOf(ms: number): number {
  return ms <= 1 ? 0 : Math.min(BUCKETS - 1, Math.ceil(2 * Math.log2(ms)));
}

/**
 * A distribution of recent times, for percentiles. Buckets half an octave wide instead of samples: adding allocates
 * nothing and reads no clock, so this may run once per token.
 */
export class Latencies {
  readonly #counts = new Uint32Array(BUCKETS);
  #count = 0;

  /** Times that count, those that are half forgotten included. */
  get count(): number {
    return this.#count;
  }

  /** @param bucket Of the time, by `bucketOf`. */
  add(bucket: number): void {
    this.#counts[bucket]! += 1;
    this.#count += 1;
    if (this.#count === KEPT) this.#halve();
  }

  /** The time that the given share of times did not exceed, rounded up to the edge of its bucket. 0 without any. */
  quantileMs(share: number): number {
    let left = Math.ceil(share * this.#count);
    if (left === 0) return 0;
    let index = 0;
    while (index < BUCKETS - 1 && (left -= this.#counts[index]!) > 0) index += 1;
    return 2 ** (index / 2);
  }

  #halve(): void {
    this.#count = 0;
    for (let index = 0; index < BUCKETS; index += 1) this.#count += this.#counts[index]! >>>= 1;
  }
}

/** What was seen of all instances of one role and build. */
class FleetPace {
  readonly first = new Latencies();
  readonly gap = new Latencies();
  /** Prompt tokens per millisecond. 0 before the first prefill. */
  tokensPerMs = 0;
}

export class Pace {
  /** When it last brought a leg forward: an answer of prefill, or tokens. By the router's clock; 0 before. */
  movedAtMs = 0;
  readonly #fleet: FleetPace;
  readonly #first = new Latencies();
  readonly #gap = new Latencies();
  #msPerToken: number | undefined;

  constructor(fleet: FleetPace) {
    this.#fleet = fleet;
  }

  /** Of the time to its first sign of a leg: prefill's answer, or decode's first token. Undefined: too little is known. */
  get usualFirstMs(): number | undefined {
    return usualOf(this.#first, this.#fleet.first);
  }

  /** Of the time between two messages of a stream. Undefined: too little is known. */
  get usualGapMs(): number | undefined {
    return usualOf(this.#gap, this.#fleet.gap);
  }

  /** Prompt tokens per millisecond, of all instances of its build. 0: unknown. */
  get fleetTokensPerMs(): number {
    return this.#fleet.tokensPerMs;
  }

  /** Time per token of a whole answer, at its slowest of late. Undefined: unknown. */
  get answerMsPerToken(): number | undefined {
    return this.#msPerToken;
  }

  /** @param ms For prefill: beyond the time that the prompt needs at the known rate. */
  cameFirst(ms: number): void {
    const bucket = bucketOf(ms);
    this.#first.add(bucket);
    this.#fleet.first.add(bucket);
  }

  /** Notes the time between two messages of a stream. Runs once per message. */
  wrote(gapMs: number): void {
    const bucket = bucketOf(gapMs);
    this.#gap.add(bucket);
    this.#fleet.gap.add(bucket);
  }

  /** Notes a prompt that was computed. */
  prefilled(tokens: number, ms: number): void {
    if (tokens <= 0 || ms <= 0) return;
    const fleet = this.#fleet;
    fleet.tokensPerMs += fleet.tokensPerMs === 0 ? tokens / ms : RATE_WEIGHT * (tokens / ms - fleet.tokensPerMs);
  }

  /** @param ms Time from prefill's answer to the last token. */
  answered(ms: number, tokens: number): void {
    if (tokens < ANSWER_TOKENS) return;
    this.#msPerToken = Math.max(ms / tokens, (this.#msPerToken ?? 0) * (1 - ANSWER_FORGOTTEN));
  }
}

export class Paces {
  readonly #paces = new WeakMap<Instance, Pace>();
  readonly #fleets = new Map<string, FleetPace>();

  of(instance: Instance): Pace {
    let pace = this.#paces.get(instance);
    if (pace === undefined) this.#paces.set(instance, (pace = new Pace(this.#fleetOf(instance))));
    return pace;
  }

  #fleetOf({ info }: Instance): FleetPace {
    const key = `${Role[info.role]} ${buildOf(info)}`;
    let fleet = this.#fleets.get(key);
    if (fleet !== undefined) return fleet;
    if (this.#fleets.size === BUILD_LIMIT) this.#fleets.delete(this.#fleets.keys().next().value!);
    this.#fleets.set(key, (fleet = new FleetPace()));
    return fleet;
  }
}

function usualOf(own: Latencies, fleet: Latencies): number | undefined {
  const known = own.count >= ENOUGH ? own : fleet;
  return known.count >= ENOUGH ? known.quantileMs(USUAL) : undefined;
}
