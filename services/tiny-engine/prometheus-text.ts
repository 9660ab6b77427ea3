// Prometheus text as vLLM's Python client prints it, which prom-client can't: floats everywhere, labels sorted by name,
// and a `_created` gauge after every counter and histogram.

export interface Histogram {
  /** Upper bounds, ascending, without +Inf. */
  readonly bounds: readonly number[];
  /** Per bucket, not cumulative; one longer than `bounds`. */
  readonly counts: number[];
  sum: number;
}

export function histogram(bounds: readonly number[]): Histogram {
  return { bounds, counts: new Array<number>(bounds.length + 1).fill(0), sum: 0 };
}

export function observe(target: Histogram, value: number): void {
  const { bounds } = target;
  let bucket = 0;
  while (bucket < bounds.length && value > bounds[bucket]!) bucket++;
  target.counts[bucket]!++;
  target.sum += value;
}

export type Labels = Readonly<Record<string, string>>;
export type Sample = readonly [Labels, number | Histogram];

interface Family {
  readonly type: string;
  /** Of a counter, without `_total`. */
  readonly name: string;
  readonly help: string;
}

/** @param createdSeconds When the series began, Unix time. */
export function familyText({ type, name, help }: Family, samples: readonly Sample[], createdSeconds: number): string {
  const wireName = type === "counter" ? `${name}_total` : name;
  let text = `# HELP ${wireName} ${help}\n# TYPE ${wireName} ${type}\n`;
  for (const [labels, value] of samples) {
    text += typeof value === "number" ? line(wireName, labels, value) : histogramLines(name, labels, value);
  }
  if (type === "gauge") return text;
  text += `# HELP ${name}_created ${help}\n# TYPE ${name}_created gauge\n`;
  for (const [labels] of samples) text += line(`${name}_created`, labels, createdSeconds);
  return text;
}

function histogramLines(name: string, labels: Labels, { bounds, counts, sum }: Histogram): string {
  let text = "";
  let total = 0;
  counts.forEach((count, bucket) => {
    const bound = bounds[bucket];
    const le = bound === undefined ? "+Inf" : float(bound);
    text += line(`${name}_bucket`, { ...labels, le }, (total += count));
  });
  return text + line(`${name}_count`, labels, total) + line(`${name}_sum`, labels, sum);
}

function line(name: string, labels: Labels, value: number): string {
  const pairs = Object.keys(labels)
    .sort()
    .map((key) => `${key}="${labels[key]!.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll('"', '\\"')}"`);
  return `${name}${pairs.length === 0 ? "" : `{${pairs.join(",")}}`} ${float(value)}\n`;
}

/** A float as prometheus_client's `floatToGoString` prints it: `8.0`, `1.5e+06`. */
function float(value: number): string {
  const plain = Number.isInteger(value) ? `${value}.0` : String(value);
  const dot = plain.indexOf(".");
  if (value <= 0 || dot <= 6) return plain;
  const mantissa = `${plain[0]}.${plain.slice(1, dot)}${plain.slice(dot + 1)}`.replace(/[0.]+$/, "");
  return `${mantissa}e+${String(dot - 1).padStart(2, "0")}`;
}
