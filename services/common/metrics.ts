// The door to prom-client: metrics that belong to an object rather than to the process, so that tests can run several.
import { Counter, Gauge, Histogram, Registry } from "prom-client";

export interface Metrics {
  /** `name` ends in `_total`. The same name again gives the same metric. */
  counter(name: string, help: string, labels?: readonly string[]): Counter<string>;
  /** @param collect Called at each scrape; sets the value. */
  gauge(
    name: string,
    help: string,
    labels?: readonly string[],
    collect?: (gauge: Gauge<string>) => void,
  ): Gauge<string>;
  /** @param buckets Upper bounds, ascending, in the unit that `name` ends in. */
  histogram(name: string, help: string, buckets: readonly number[], labels?: readonly string[]): Histogram<string>;
  /** Prometheus text format. */
  text(): Promise<string>;
  readonly contentType: string;
}

export type { Counter, Gauge, Histogram };

export function createMetrics(): Metrics {
  const registry = new Registry();
  const registers = [registry];

  const known = <M>(name: string, create: () => M): M => (registry.getSingleMetric(name) as M | undefined) ?? create();
  const metrics: Metrics = {
    counter: (name, help, labels = []) =>
      known(name, () => new Counter({ name, help, labelNames: [...labels], registers })),
    gauge: (name, help, labels = [], collect) =>
      known(name, () => {
        const on =
          collect === undefined
            ? {}
            : {
                collect(this: Gauge<string>) {
                  collect(this);
                },
              };
        return new Gauge({ name, help, labelNames: [...labels], registers, ...on });
      }),
    histogram: (name, help, buckets, labels = []) =>
      known(name, () => new Histogram({ name, help, buckets: [...buckets], labelNames: [...labels], registers })),
    text: () => registry.metrics(),
    contentType: registry.contentType,
  };

  // The three that every dashboard has. prom-client's own collection also samples the event loop and the heap all the time.
  metrics.gauge("process_resident_memory_bytes", "Resident memory.", [], (gauge) =>
    gauge.set(process.memoryUsage.rss()),
  );
  metrics
    .gauge("process_start_time_seconds", "Start of the process, seconds since 1970.")
    .set(performance.timeOrigin / 1000);
  const cpu = metrics.counter("process_cpu_seconds_total", "Processor time, user and system.");
  (cpu as unknown as { collect: () => void }).collect = () => {
    const { user, system } = process.cpuUsage();
    cpu.reset();
    cpu.inc((user + system) / 1e6);
  };
  return metrics;
}
