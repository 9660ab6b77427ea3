// Prometheus text as vLLM's Python client prints it: floats everywhere, labels sorted by name,
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

/** 1, 2, 5, 10, ... up to `limit`: vLLM's buckets for token counts. */
export function bucketsUpTo(limit: number): number[] {
  const bounds: number[] = [];
  for (let power = 1; power <= limit; power *= 10) {
    for (const factor of [1, 2, 5]) if (factor * power <= limit) bounds.push(factor * power);
  }
  return bounds;
}

export type Labels = Readonly<Record<string, string>>;

export type Family = {
  readonly name: string;
  readonly help: string;
} & (
  | { readonly type: "gauge"; readonly samples: readonly (readonly [Labels, number])[] }
  | { readonly type: "counter"; readonly samples: readonly (readonly [Labels, number])[] }
  | { readonly type: "histogram"; readonly samples: readonly (readonly [Labels, Histogram])[] }
);

/** @param createdSeconds When the series began, Unix time. */
export function metricsText(families: readonly Family[], createdSeconds: number): string {
  let text = "";
  for (const family of families) {
    const wireName = family.type === "counter" ? `${family.name}_total` : family.name;
    text += `# HELP ${wireName} ${family.help}\n# TYPE ${wireName} ${family.type}\n`;
    if (family.type === "histogram") {
      for (const [labels, series] of family.samples) text += histogramLines(family.name, labels, series);
    } else {
      for (const [labels, value] of family.samples) text += `${wireName}${labelText(labels)} ${float(value)}\n`;
    }
    if (family.type === "gauge") continue;
    text += `# HELP ${family.name}_created ${family.help}\n# TYPE ${family.name}_created gauge\n`;
    for (const [labels] of family.samples)
      text += `${family.name}_created${labelText(labels)} ${float(createdSeconds)}\n`;
  }
  return text;
}

function histogramLines(name: string, labels: Labels, series: Histogram): string {
  let text = "";
  let total = 0;
  series.counts.forEach((count, bucket) => {
    total += count;
    const bound = series.bounds[bucket];
    const le = bound === undefined ? "+Inf" : float(bound);
    text += `${name}_bucket${labelText({ ...labels, le })} ${float(total)}\n`;
  });
  return `${text}${name}_count${labelText(labels)} ${float(total)}\n${name}_sum${labelText(labels)} ${float(series.sum)}\n`;
}

function labelText(labels: Labels): string {
  const pairs = Object.keys(labels)
    .sort()
    .map((key) => `${key}="${labels[key]!.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll('"', '\\"')}"`);
  return pairs.length === 0 ? "" : `{${pairs.join(",")}}`;
}

/** A float as prometheus_client's `floatToGoString` prints it: `8.0`, `1.5e+06`. */
function float(value: number): string {
  const plain = Number.isInteger(value) ? `${value}.0` : String(value);
  const dot = plain.indexOf(".");
  if (value <= 0 || dot <= 6) return plain;
  const mantissa = `${plain[0]}.${plain.slice(1, dot)}${plain.slice(dot + 1)}`.replace(/[0.]+$/, "");
  return `${mantissa}e+${String(dot - 1).padStart(2, "0")}`;
}
