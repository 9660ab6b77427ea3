// The schedule of faults: a pure function of the seed, so that a failed run can be repeated. One instance of every role
// and one router are always left alone, because the promises assume that some can still serve.
import { seededRandom } from "../loadgen/arrivals.ts";

type Role = "prefill" | "decode" | "router" | "consul";

interface FaultTraits {
  readonly weight: number;
  readonly on: readonly Role[];
  /** Shortest and longest duration. Left out: the fault is over at once. */
  readonly durationMs?: readonly [number, number];
  /** Time until its target counts as recovered. */
  readonly recoveryMs: number;
  /** Loses nothing. A client may notice any other fault, by at most one typed error. */
  readonly soft?: boolean;
}

const INSTANCES = ["prefill", "decode"] as const;

const FAULTS = {
  "kill-wrapper": { weight: 2, on: INSTANCES, recoveryMs: 5_000 },
  "kill-engine": { weight: 2, on: INSTANCES, recoveryMs: 4_000 },
  "freeze-wrapper": { weight: 2, on: INSTANCES, durationMs: [200, 6_000], recoveryMs: 4_000 },
  "freeze-engine": { weight: 2, on: INSTANCES, durationMs: [200, 8_000], recoveryMs: 5_000 },
  "drop-rpc": { weight: 2, on: INSTANCES, durationMs: [200, 5_000], recoveryMs: 4_000 },
  "delay-rpc": { weight: 1, on: INSTANCES, durationMs: [500, 3_000], recoveryMs: 2_000 },
  "halve-rpc": { weight: 2, on: INSTANCES, durationMs: [50, 1_000], recoveryMs: 3_000 },
  "drop-kv-link": { weight: 1, on: ["decode"], durationMs: [200, 6_000], recoveryMs: 4_000 },
  "halve-kv-link": { weight: 1, on: ["decode"], durationMs: [50, 1_000], recoveryMs: 3_000 },
  "engine-fault": { weight: 5, on: INSTANCES, recoveryMs: 6_000 },
  drain: { weight: 2, on: INSTANCES, durationMs: [500, 4_000], recoveryMs: 1_000, soft: true },
  restart: { weight: 2, on: INSTANCES, recoveryMs: 9_000, soft: true },
  "end-engine": { weight: 1, on: INSTANCES, recoveryMs: 5_000 },
  "clock-jump": {
    weight: 0.5,
    on: ["prefill", "decode", "router"],
    durationMs: [200, 3_000],
    recoveryMs: 500,
    soft: true,
  },
  strangers: {
    weight: 1,
    on: ["prefill", "decode", "router"],
    durationMs: [500, 4_000],
    recoveryMs: 1_000,
    soft: true,
  },
  "freeze-router": { weight: 0.6, on: ["router"], durationMs: [200, 6_000], recoveryMs: 3_000 },
  "kill-consul": { weight: 0.5, on: ["consul"], recoveryMs: 5_000, soft: true },
  "kill-router": { weight: 0.4, on: ["router"], recoveryMs: 4_000 },
  "restart-router": { weight: 0.6, on: ["router"], recoveryMs: 10_000, soft: true },
} as const satisfies Readonly<Record<string, FaultTraits>>;

export type FaultName = keyof typeof FAULTS;
const CHOICES = Object.entries<FaultTraits>(FAULTS) as [FaultName, FaultTraits][];
export const FAULT_NAMES: readonly string[] = Object.keys(FAULTS);

export function isSoft(name: FaultName): boolean {
  return "soft" in FAULTS[name];
}

export interface PlannedFault {
  readonly index: number;
  /** Time from the start of the load. */
  readonly atMs: number;
  readonly kind: FaultName;
  /** Process name, such as `prefill-1`, `decode-3`, `router-2`, `consul-1`. */
  readonly target: string;
  /** How long the fault lasts; 0 if it is over at once. */
  readonly durationMs: number;
  /** Only for `engine-fault`: the body of `POST /sim/fault`. */
  readonly engineFault?: EngineFault;
}

export type EngineFault = Readonly<Record<string, unknown>>;

export interface FleetShape {
  readonly routers: number;
  readonly prefill: number;
  readonly decode: number;
}

/** Faults have a count of uses, so that they end by themselves; `hang` ends with its engine. */
const ENGINE_FAULTS: Readonly<Record<"prefill" | "decode", readonly EngineFault[]>> = {
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

interface PlanOptions {
  /** Only these. Empty: all. */
  readonly kinds?: readonly string[];
  readonly without?: readonly FaultName[];
  readonly restMs?: number;
}

/** Plans faults in ascending order of time. No fault begins in the last `restMs`. */
export function planFaults(
  seed: number,
  lengthMs: number,
  fleet: FleetShape,
  { kinds = [], without = [], restMs = 0 }: PlanOptions = {},
): PlannedFault[] {
  const random = seededRandom(seed);
  const between = ([low, high]: readonly [number, number]): number => Math.round(low + random() * (high - low));
  const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)]!;
  const counts: Readonly<Record<Role, number>> = { ...fleet, router: fleet.routers, consul: 1 };
  const namesOf = (role: Role): string[] => Array.from({ length: counts[role] }, (_, index) => `${role}-${index + 1}`);
  const choices = CHOICES.filter(([kind]) => (kinds.length === 0 || kinds.includes(kind)) && !without.includes(kind));
  const total = choices.reduce((sum, [, { weight }]) => sum + weight, 0);
  const busyUntilMs = new Map<string, number>();
  const plan: PlannedFault[] = [];
  if (total === 0) return plan;

  for (let atMs = 1_000; atMs < lengthMs - restMs; atMs += between(GAP_MS)) {
    let left = random() * total;
    const [kind, traits] = choices.find(([, { weight }]) => (left -= weight) < 0) ?? choices.at(-1)!;
    const role = pick(traits.on);
    const whole = namesOf(role).filter((name) => (busyUntilMs.get(name) ?? 0) <= atMs);
    const target = pick(whole.length > 0 ? whole : namesOf(role));
    const durationMs = between(traits.durationMs ?? [0, 0]);
    const engineFault =
      kind === "engine-fault" && (role === "prefill" || role === "decode")
        ? { engineFault: pick(ENGINE_FAULTS[role]) }
        : {};
    // All random draws are made above, so that leaving out one fault changes no other.
    if (whole.length < (role === "consul" ? 1 : 2)) continue;
    busyUntilMs.set(target, atMs + durationMs + traits.recoveryMs);
    plan.push({ index: plan.length, atMs, kind, target, durationMs, ...engineFault });
  }
  return plan;
}
