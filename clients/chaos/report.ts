// The result of a run in words and figures.
import { summarise, type Summary } from "../loadgen/statistics.ts";
import { CONTROL_GAP_MS, tally, type CheckResult, type judge, type Violation } from "./check.ts";
import type { Fault } from "./injector.ts";
import type { SceneResult } from "./scenes.ts";
import type { ChaosWatch, RouterFigures } from "./watch.ts";

interface RunFigures {
  readonly seed: number;
  readonly fleet: string;
  readonly node: string;
  readonly lengthS: number;
  readonly requests: number;
  /** Milliseconds from the last stream until no engine held KV and no instance counted a leg. */
  readonly settledMs: number | undefined;
}

export type Report = ReturnType<typeof makeReport>;

const SHOWN_LIMIT = 20;

export function makeReport(
  figures: RunFigures,
  faults: readonly Fault[],
  { untouchedGapsMs, ...result }: Omit<CheckResult, "violations">,
  { leasesExpired, controlGapsMs, routers }: ChaosWatch,
  scenes: readonly SceneResult[],
  { broken, unjudged }: ReturnType<typeof judge>,
) {
  const done = faults.filter(({ skipped }) => skipped === undefined);
  return {
    ...figures,
    ...result,
    faults: tally(done.map(({ kind }) => kind)),
    skipped: faults.length - done.length,
    leasesExpired,
    itlMs: { control: summarise(controlGapsMs), untouched: summarise(untouchedGapsMs) },
    routers: routers.map(({ router, heap, delays }) => ({
      name: router,
      loopDelayP99Ms: quantile(delays, 0.99) * 1_000,
      heapMib: (heap.at(-1)?.bytes ?? Number.NaN) / 2 ** 20,
      heapSlopeMibPerH: (slope(lowMarks(heap)) * 3_600) / 2 ** 20,
    })),
    scenes: scenes.map(({ name, figures: words }) => ({ name, figures: words })),
    violations: broken,
    unjudged,
  };
}

export function renderReport(report: Report, folder: string): string {
  const counts = (of: Readonly<Record<string, number>>): string =>
    Object.entries(of)
      .sort(([, a], [, b]) => b - a)
      .map(([name, count]) => `${name} ${count}`)
      .join(", ") || "none";
  const ms = (value: number): string => (Number.isNaN(value) ? "-" : `${value.toFixed(1)} ms`);
  const shares = ({ p50, p99, max }: Summary): string => `${ms(p50)} / ${ms(p99)} / ${ms(max)}`;
  const { control, untouched } = report.itlMs;
  const lines = [
    `seed ${report.seed}, fleet ${report.fleet}, Node ${report.node}, ${report.lengthS.toFixed(0)} s, ${report.requests} requests`,
    `faults: ${counts(report.faults)}${report.skipped > 0 ? `; ${report.skipped} could not be injected` : ""}`,
    `endings: ${counts(report.endings)}`,
    `errors that clients saw: ${counts(report.errors)}`,
    `untouched by any fault: ${report.untouched}; hit, retried and completed: ${report.rescued}, of which in mid-stream: ${report.resumed}`,
    `slowest end after a fault: ${ms(report.slowestEndMs)}`,
    `longest that KV lay unclaimed: ${ms(report.longestKvMs)}; leases that ran out: ${report.leasesExpired}; all settled after the last stream: ${report.settledMs === undefined ? "never" : ms(report.settledMs)}`,
    `ITL p50/p99/max: ${shares(untouched)} untouched, ${shares(control)} control`,
    ...report.routers.map(
      (router) =>
        `${router.name}: event-loop delay p99 ${ms(router.loopDelayP99Ms)}, heap ${router.heapMib.toFixed(1)} MiB, slope ${router.heapSlopeMibPerH.toFixed(1)} MiB/h`,
    ),
    ...report.scenes.map(({ name, figures }) => `${name}: ${figures}`),
    "",
    verdictOf(report, folder),
    ...[...report.violations, ...report.unjudged].slice(0, SHOWN_LIMIT).map(describe),
  ];
  return `${lines.join("\n")}\n`;
}

function verdictOf({ violations, unjudged, seed, itlMs }: Report, folder: string): string {
  if (violations.length > 0) return `${violations.length} VIOLATIONS (seed ${seed}; logs in ${folder})`;
  if (unjudged.length === 0) return "no promise was broken";
  return (
    `INCONCLUSIVE: the control stream was silent for ${itlMs.control.max.toFixed(0)} ms (limit ${CONTROL_GAP_MS} ms): this machine was too slow ` +
    `to judge ${unjudged.length} findings by; wrong answers, KV and memory were judged`
  );
}

/** One line a run, in the order in which they ran. */
export function renderRuns(reports: readonly Report[]): string {
  const verdict = ({ violations, unjudged }: Report): string =>
    violations.length > 0 ? `${violations.length} broken` : unjudged.length > 0 ? "inconclusive" : "kept";
  const lines = reports.map(
    (report) =>
      `seed ${report.seed}  ${report.fleet.padEnd(18)} ${report.node.padEnd(9)} ${String(report.requests).padStart(6)} requests  ${verdict(report)}`,
  );
  const broken = reports.filter(({ violations }) => violations.length > 0).length;
  const open = reports.filter(({ violations, unjudged }) => violations.length === 0 && unjudged.length > 0).length;
  lines.push(`${reports.length} runs: ${broken} with broken promises, ${open} inconclusive`);
  return `\n${lines.join("\n")}\n`;
}

function describe({ rule, what, request, receipt, faults = [] }: Violation): string {
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
function lowMarks(samples: RouterFigures["heap"]): RouterFigures["heap"] {
  const width = Math.max(1, Math.ceil(samples.length / 10));
  const marks: RouterFigures["heap"] = [];
  for (let from = 0; from < samples.length; from += width) {
    marks.push(samples.slice(from, from + width).reduce((low, sample) => (sample.bytes < low.bytes ? sample : low)));
  }
  return marks;
}

/** Slope in bytes per second, by least squares. */
function slope(points: RouterFigures["heap"]): number {
  const count = points.length;
  const meanX = points.reduce((sum, { atS }) => sum + atS, 0) / count;
  const meanY = points.reduce((sum, { bytes }) => sum + bytes, 0) / count;
  const over = points.reduce((sum, { atS, bytes }) => sum + (atS - meanX) * (bytes - meanY), 0);
  const under = points.reduce((sum, { atS }) => sum + (atS - meanX) ** 2, 0);
  return over / under;
}
