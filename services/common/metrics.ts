// The only user of prom-client: metrics that belong to an object rather than to the process, so that tests can run
// several.
import { createRequire } from "node:module";
import type * as prom from "prom-client";
import { TANDEM_COMMIT, TANDEM_VERSION } from "./version.ts";

// File by file: the package's own entry also loads @opentelemetry/api for metrics that we don't use, 5.6 MB of memory.
const require = createRequire(import.meta.url);
const Counter = require("prom-client/lib/counter.js") as typeof prom.Counter<string>;
const Gauge = require("prom-client/lib/gauge.js") as typeof prom.Gauge<string>;
const Histogram = require("prom-client/lib/histogram.js") as typeof prom.Histogram<string>;
const Registry = require("prom-client/lib/registry.js") as typeof prom.Registry;

export type Counter = prom.Counter<string>;
export type Gauge = prom.Gauge<string>;
export type Histogram = prom.Histogram<string>;

export interface MetricInfo {
  readonly name: string;
  readonly help: string;
  readonly type: "counter" | "gauge" | "histogram";
  readonly labelNames: readonly string[];
}

export interface Metrics {
  /** `name` ends in `_total`. A second call with the same name returns the same metric. */
  counter(name: string, help: string, labels?: readonly string[]): Counter;
  /** @param collect Called at each scrape; sets the value. */
  gauge(name: string, help: string, labels?: readonly string[], collect?: (gauge: Gauge) => void): Gauge;
  /** @param buckets Upper bounds, ascending, in the unit that `name` ends in. */
  histogram(name: string, help: string, buckets: readonly number[], labels?: readonly string[]): Histogram;
  /** A histogram for code that runs per token: no labels, and an observation allocates nothing. */
  tally(name: string, help: string, buckets: readonly number[]): { observe(value: number): void };
  /** All registered metrics, also those without a value yet. docs/metrics.md is generated from this list. */
  list(): readonly MetricInfo[];
  /** Prometheus text format. */
  text(): Promise<string>;
  readonly contentType: string;
}

export function createMetrics(): Metrics {
  const registry = new Registry();
  const registers = [registry];

  const known = <M>(name: string, create: () => M): M => (registry.getSingleMetric(name) as M | undefined) ?? create();
  const metrics: Metrics = {
    counter: (name, help, labels = []) =>
      known(name, () => new Counter({ name, help, labelNames: [...labels], registers })),
    gauge: (name, help, labels = [], collect) =>
      known(name, () => {
        const gauge: Gauge = new Gauge({ name, help, labelNames: [...labels], registers });
        return collect === undefined ? gauge : collecting(gauge, collect);
      }),
    histogram: (name, help, buckets, labels = []) =>
      known(name, () => new Histogram({ name, help, buckets: [...buckets], labelNames: [...labels], registers })),
    tally: (name, help, buckets) => tallyOf(metrics.histogram(name, help, buckets), buckets),
    list: () => registry.getMetricsAsArray() as unknown as readonly MetricInfo[],
    text: () => registry.metrics(),
    contentType: registry.contentType,
  };

  metrics
    .gauge("tandem_build_info", "1; the labels say which build this is.", ["version", "commit"])
    .set({ version: TANDEM_VERSION, commit: TANDEM_COMMIT }, 1);
  // The metrics that every dashboard has. prom-client's own collection would also sample the event loop all the time.
  metrics.gauge("process_resident_memory_bytes", "Resident memory.", [], (gauge) =>
    gauge.set(process.memoryUsage.rss()),
  );
  metrics.gauge("nodejs_heap_size_used_bytes", "JavaScript heap in use, garbage included.", [], (gauge) =>
    gauge.set(process.memoryUsage().heapUsed),
  );
  metrics
    .gauge("process_start_time_seconds", "Start of the process, seconds since 1970.")
    .set(performance.timeOrigin / 1000);
  const cpu = metrics.counter("process_cpu_seconds_total", "Processor time, user and system.");
  collecting(cpu, () => {
    const { user, system } = process.cpuUsage();
    cpu.reset();
    cpu.inc((user + system) / 1e6);
  });
  return metrics;
}

/** prom-client calls `collect` at each scrape; its constructors offer it only as a method that uses `this`. */
function collecting<M extends object>(metric: M, collect: (metric: M) => void): M {
  return Object.assign(metric, { collect: () => collect(metric) });
}

/** Counts for a histogram without labels, and hands the figures over when they are scraped. */
function tallyOf(histogram: Histogram, buckets: readonly number[]): { observe(value: number): void } {
  // Where prom-client 15.1 keeps them: lib/histogram.js.
  const { hashMap } = histogram as unknown as { hashMap: { "": { sum: number; count: number; bucketValues: object } } };
  const counts = new Float64Array(buckets.length);
  let sum = 0;
  let count = 0;
  collecting(histogram, () => {
    const bucketValues = Object.fromEntries(buckets.map((bound, index) => [bound, counts[index]]));
    Object.assign(hashMap[""], { sum, count, bucketValues });
  });
  return {
    observe(value) {
      sum += value;
      count += 1;
      for (let index = 0; index < counts.length; index += 1) {
        if (value > buckets[index]!) continue;
        counts[index]! += 1;
        return;
      }
    },
  };
}
