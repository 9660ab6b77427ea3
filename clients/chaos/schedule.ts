// The schedule of faults: a pure function of the seed, so that a failed run can be repeated. One instance of every role
// and one router are always left alone, because the promises assume that some can still serve.
import { seededRandom } from "../loadgen/arrivals.ts";

/** Faults that the client may notice, by at most one typed error. */
export const HARD_FAULTS = [
  "kill-wrapper",
  "kill-engine",
  "freeze-wrapper",
  "freeze-engine",
  "drop-rpc",
  "delay-rpc",
  "halve-rpc",
  "drop-kv-link",
  "halve-kv-link",
  "engine-fault",
  "kill-router",
] as const;
/** Faults that lose nothing. */
export const SOFT_FAULTS = ["drain", "restart", "restart-router"] as const;
export type FaultKind = (typeof HARD_FAULTS)[number] | (typeof SOFT_FAULTS)[number];

export interface PlannedFault {
  readonly index: number;
  /** Time from the start of the load. */
  readonly atMs: number;
  readonly kind: FaultKind;
  /** Process name, such as `prefill-1`, `decode-3`, `router-2`. */
  readonly target: string;
  /** How long the fault lasts; 0 if it is over at once. */
  readonly durationMs: number;
  /** Only for `engine-fault`: the body of `POST /sim/fault`. */
  readonly engineFault?: Readonly<Record<string, unknown>>;
}

export interface FleetShape {
  readonly routers: number;
  readonly prefill: number;
  readonly decode: number;
}

interface Choice {
  readonly kind: FaultKind;
  readonly weight: number;
  readonly on: readonly ("prefill" | "decode" | "router")[];
  /** Shortest and longest duration. */
  readonly durationMs: readonly [number, number];
  /** Time until its target counts as recovered. */
  readonly recoveryMs: number;
}

const CHOICES: readonly Choice[] = [
  { kind: "kill-wrapper", weight: 2, on: ["prefill", "decode"], durationMs: [0, 0], recoveryMs: 5_000 },
  { kind: "kill-engine", weight: 2, on: ["prefill", "decode"], durationMs: [0, 0], recoveryMs: 4_000 },
  { kind: "freeze-wrapper", weight: 2, on: ["prefill", "decode"], durationMs: [200, 6_000], recoveryMs: 4_000 },
  { kind: "freeze-engine", weight: 2, on: ["prefill", "decode"], durationMs: [200, 8_000], recoveryMs: 5_000 },
  { kind: "drop-rpc", weight: 2, on: ["prefill", "decode"], durationMs: [200, 5_000], recoveryMs: 4_000 },
  { kind: "delay-rpc", weight: 1, on: ["prefill", "decode"], durationMs: [500, 3_000], recoveryMs: 2_000 },
  { kind: "halve-rpc", weight: 2, on: ["prefill", "decode"], durationMs: [50, 1_000], recoveryMs: 3_000 },
  { kind: "drop-kv-link", weight: 1, on: ["decode"], durationMs: [200, 6_000], recoveryMs: 4_000 },
  { kind: "halve-kv-link", weight: 1, on: ["decode"], durationMs: [50, 1_000], recoveryMs: 3_000 },
  { kind: "engine-fault", weight: 5, on: ["prefill", "decode"], durationMs: [0, 0], recoveryMs: 6_000 },
  { kind: "drain", weight: 2, on: ["prefill", "decode"], durationMs: [500, 4_000], recoveryMs: 1_000 },
  { kind: "restart", weight: 2, on: ["prefill", "decode"], durationMs: [0, 0], recoveryMs: 9_000 },
  { kind: "kill-router", weight: 0.4, on: ["router"], durationMs: [0, 0], recoveryMs: 4_000 },
  { kind: "restart-router", weight: 0.6, on: ["router"], durationMs: [0, 0], recoveryMs: 10_000 },
];

/** Faults have a count of uses, so that they end by themselves; `hang` ends with its engine. */
const ENGINE_FAULTS: Readonly<Record<"prefill" | "decode", readonly Readonly<Record<string, unknown>>[]>> = {
  prefill: [
    { kind: "slow", extra_ms: 400, count: 3 },
    { kind: "stall", after_tokens: 0, count: 2 },
    { kind: "refuse", status: 503, count: 3 },
    { kind: "refuse", status: 500, count: 3 },
    { kind: "die", after_tokens: 0, count: 1 },
    { kind: "half-event", after_tokens: 0, count: 2 },
    { kind: "hang" },
    { kind: "corrupt-kv", count: 2 },
    { kind: "wrong-model", count: 2 },
  ],
  decode: [
    { kind: "slow", extra_ms: 200, count: 4 },
    { kind: "stall", after_tokens: 0, count: 2 },
    { kind: "stall", after_tokens: 5, count: 2 },
    { kind: "refuse", status: 503, count: 3 },
    { kind: "refuse", status: 500, count: 3 },
    { kind: "die", after_tokens: 3, count: 1 },
    { kind: "error-event", after_tokens: 4, count: 2 },
    { kind: "half-event", after_tokens: 4, count: 2 },
    { kind: "hang" },
    { kind: "drop-kv", count: 2 },
    { kind: "silent-kv", count: 4 },
  ],
};

/** Shortest and longest gap between two faults. */
const GAP_MS = [400, 2_000] as const;

/** Plans faults in ascending order of time. No fault begins in the last `restMs`. */
export function planFaults(
  seed: number,
  lengthMs: number,
  fleet: FleetShape,
  o: { readonly kinds?: readonly string[]; readonly restMs?: number } = {},
): PlannedFault[] {
  const random = seededRandom(seed);
  const between = ([low, high]: readonly [number, number]): number => Math.round(low + random() * (high - low));
  const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)]!;
  const names = (role: "prefill" | "decode" | "router"): string[] =>
    Array.from({ length: role === "router" ? fleet.routers : fleet[role] }, (_, index) => `${role}-${index + 1}`);
  const choices = CHOICES.filter(({ kind }) => o.kinds === undefined || o.kinds.length === 0 || o.kinds.includes(kind));
  const total = choices.reduce((sum, { weight }) => sum + weight, 0);
  const busyUntilMs = new Map<string, number>();
  const plan: PlannedFault[] = [];
  if (total === 0) return plan;

  for (let atMs = 1_000; atMs < lengthMs - (o.restMs ?? 0); atMs += between(GAP_MS)) {
    let left = random() * total;
    const choice = choices.find(({ weight }) => (left -= weight) < 0) ?? choices.at(-1)!;
    const role = pick(choice.on);
    const whole = names(role).filter((name) => (busyUntilMs.get(name) ?? 0) <= atMs);
    const target = pick(whole.length > 0 ? whole : names(role));
    const durationMs = between(choice.durationMs);
    const engineFault = choice.kind === "engine-fault" && role !== "router" ? pick(ENGINE_FAULTS[role]) : undefined;
    // All random draws are made above, so that leaving out one fault changes no other.
    if (whole.length < 2) continue;
    busyUntilMs.set(target, atMs + durationMs + choice.recoveryMs);
    plan.push({
      index: plan.length,
      atMs,
      kind: choice.kind,
      target,
      durationMs,
      ...(engineFault === undefined ? {} : { engineFault }),
    });
  }
  return plan;
}

export function isSoft(kind: FaultKind): boolean {
  return (SOFT_FAULTS as readonly string[]).includes(kind);
}
