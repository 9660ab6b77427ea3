// The result of a run in words and figures.
import { percentile } from "../loadgen/statistics.ts";
import type { CheckResult, Violation } from "./check.ts";
import type { Fault } from "./injector.ts";
import type { SceneResult } from "./scenes.ts";
import type { RouterFigures } from "./watch.ts";

export interface Report {
  readonly seed: number;
  readonly lengthS: number;
  readonly requests: number;
  readonly faults: Readonly<Record<string, number>>;
  readonly skipped: number;
  readonly endings: Readonly<Record<string, number>>;
  readonly errors: Readonly<Record<string, number>>;
  readonly untouched: number;
  readonly rescued: number;
  readonly resumed: number;
  readonly slowestEndMs: number;
  readonly longestKvMs: number;
  readonly leasesExpired: number;
  /** Milliseconds from the last stream until no engine held KV and no instance counted a leg. */
  readonly settledMs: number | undefined;
  readonly itlMs: Readonly<
    Record<"control" | "untouched", { readonly p50: number; readonly p99: number; readonly max: number }>
  >;
  readonly routers: readonly {
    readonly name: string;
    readonly loopDelayP99Ms: number;
    readonly heapMib: number;
    readonly heapSlopeMibPerH: number;
  }[];
  readonly scenes: readonly { readonly name: string; readonly figures: string }[];
  readonly violations: readonly Violation[];
}

export interface ReportInput {
  readonly seed: number;
  readonly lengthS: number;
  readonly requests: number;
  readonly faults: readonly Fault[];
  readonly result: CheckResult;
  readonly leasesExpired: number;
  readonly settledMs: number | undefined;
  readonly controlGapsMs: readonly number[];
  readonly routers: readonly RouterFigures[];
  readonly scenes: readonly SceneResult[];
  /** Violations in addition to those of the result and the scenes. */
  readonly violations: readonly Violation[];
}

const SHOWN_LIMIT = 20;

export function makeReport(input: ReportInput): Report {
  const { result } = input;
  const faults: Record<string, number> = {};
  for (const { kind, skipped } of input.faults) if (skipped === undefined) faults[kind] = (faults[kind] ?? 0) + 1;
  return {
    seed: input.seed,
    lengthS: input.lengthS,
    requests: input.requests,
    faults,
    skipped: input.faults.filter(({ skipped }) => skipped !== undefined).length,
    endings: result.endings,
    errors: result.errors,
    untouched: result.untouched,
    rescued: result.rescued,
    resumed: result.resumed,
    slowestEndMs: result.slowestEndMs,
    longestKvMs: result.longestKvMs,
    leasesExpired: input.leasesExpired,
    settledMs: input.settledMs,
    itlMs: { control: shares(input.controlGapsMs), untouched: shares(result.untouchedGapsMs) },
    routers: input.routers.map(({ router, heap, delays }) => ({
      name: router,
      loopDelayP99Ms: quantile(delays, 0.99) * 1_000,
      heapMib: (heap.at(-1)?.bytes ?? Number.NaN) / 2 ** 20,
      heapSlopeMibPerH: (slope(lowMarks(heap)) * 3_600) / 2 ** 20,
    })),
    scenes: input.scenes.map(({ name, figures }) => ({ name, figures })),
    violations: [...result.violations, ...input.scenes.flatMap(({ violations }) => violations), ...input.violations],
  };
}

export function renderReport(report: Report, folder: string): string {
  const counts = (of: Readonly<Record<string, number>>): string =>
    Object.entries(of)
      .sort(([, a], [, b]) => b - a)
      .map(([name, count]) => `${name} ${count}`)
      .join(", ") || "none";
  const ms = (value: number): string => (Number.isNaN(value) ? "-" : `${value.toFixed(1)} ms`);
  const { control, untouched } = report.itlMs;
  const lines = [
    `seed ${report.seed}, ${report.lengthS.toFixed(0)} s, ${report.requests} requests`,
    `faults: ${counts(report.faults)}${report.skipped > 0 ? `; ${report.skipped} could not be injected` : ""}`,
    `endings: ${counts(report.endings)}`,
    `errors that clients saw: ${counts(report.errors)}`,
    `untouched by any fault: ${report.untouched}; hit, retried and completed: ${report.rescued}, of which in mid-stream: ${report.resumed}`,
    `slowest end after a fault: ${ms(report.slowestEndMs)}`,
    `longest that KV lay unclaimed: ${ms(report.longestKvMs)}; leases that ran out: ${report.leasesExpired}; all settled after the last stream: ${report.settledMs === undefined ? "never" : ms(report.settledMs)}`,
    `ITL p50/p99/max: ${ms(untouched.p50)} / ${ms(untouched.p99)} / ${ms(untouched.max)} untouched, ${ms(control.p50)} / ${ms(control.p99)} / ${ms(control.max)} control`,
    ...report.routers.map(
      (router) =>
        `${router.name}: event-loop delay p99 ${ms(router.loopDelayP99Ms)}, heap ${router.heapMib.toFixed(1)} MiB, slope ${router.heapSlopeMibPerH.toFixed(1)} MiB/h`,
    ),
    ...report.scenes.map(({ name, figures }) => `${name}: ${figures}`),
    "",
    report.violations.length === 0
      ? "no promise was broken"
      : `${report.violations.length} VIOLATIONS (seed ${report.seed}; logs in ${folder})`,
    ...report.violations.slice(0, SHOWN_LIMIT).map(describe),
  ];
  return `${lines.join("\n")}\n`;
}

function describe({ rule, what, request, receipt, faults }: Violation): string {
  const lines = [`- ${rule}: ${what}`];
  if (request !== undefined) {
    lines.push(
      `    request ${request.number} ${request.id} by ${request.router}, ${request.text.length} characters, ${Math.round(request.endMs - request.sentMs)} ms`,
    );
  }
  if (receipt !== undefined) {
    const legs = receipt.legs.map(
      ({ legId, prefill, decode, error }) => `${legId.slice(0, 8)} ${prefill} ${decode} ${error}`,
    );
    lines.push(`    receipt ${receipt.errorCode} [${receipt.fallbacks.join(", ")}] legs: ${legs.join(" | ")}`);
  }
  for (const fault of faults) {
    const healed = fault.healedMs === undefined ? "" : ` to ${Math.round(fault.healedMs - fault.beganMs)} ms later`;
    const since = request === undefined ? "" : `, ${Math.round(request.endMs - fault.beganMs)} ms before the end`;
    lines.push(
      `    fault ${fault.index} ${fault.kind} ${fault.target} ${fault.engineFault === undefined ? "" : JSON.stringify(fault.engineFault)}${healed}${since}`,
    );
  }
  return lines.join("\n");
}

function shares(values: readonly number[]): { p50: number; p99: number; max: number } {
  const sorted = Array.from(Float64Array.from(values).sort());
  return { p50: percentile(sorted, 0.5), p99: percentile(sorted, 0.99), max: percentile(sorted, 1) };
}

/** Quantile of a Prometheus histogram, linear inside its bucket. NaN if nothing was counted. */
export function quantile(cumulative: ReadonlyMap<number, number>, share: number): number {
  const buckets = [...cumulative].sort(([a], [b]) => a - b);
  const total = buckets.at(-1)?.[1] ?? 0;
  if (total === 0) return Number.NaN;
  let [lower, below] = [0, 0];
  for (const [bound, count] of buckets) {
    if (count >= share * total) {
      return bound === Infinity
        ? lower
        : lower + ((bound - lower) * (share * total - below)) / Math.max(1, count - below);
    }
    [lower, below] = [bound, count];
  }
  return lower;
}

/** The lowest sample of each tenth: the heap after a collection, without the growth between collections. */
function lowMarks(
  samples: readonly { readonly atS: number; readonly bytes: number }[],
): { atS: number; bytes: number }[] {
  const width = Math.max(1, Math.ceil(samples.length / 10));
  const marks: { atS: number; bytes: number }[] = [];
  for (let from = 0; from < samples.length; from += width) {
    marks.push(samples.slice(from, from + width).reduce((low, sample) => (sample.bytes < low.bytes ? sample : low)));
  }
  return marks;
}

/** Slope in bytes per second, by least squares. */
function slope(points: readonly { readonly atS: number; readonly bytes: number }[]): number {
  const count = points.length;
  const meanX = points.reduce((sum, { atS }) => sum + atS, 0) / count;
  const meanY = points.reduce((sum, { bytes }) => sum + bytes, 0) / count;
  const over = points.reduce((sum, { atS, bytes }) => sum + (atS - meanX) * (bytes - meanY), 0);
  const under = points.reduce((sum, { atS }) => sum + (atS - meanX) ** 2, 0);
  return over / under;
}
