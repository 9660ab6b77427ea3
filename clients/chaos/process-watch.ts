// Watches every process of Tandem for what no client need see: memory that grows, and a router that answers nothing.
import { readFileSync } from "node:fs";

/** No process of this deployment has a use for more. */
const MEMORY_LIMIT_BYTES = 2 ** 30;
/** The watchdog of a router ends it sooner. */
const LOOP_LIMIT_MS = 6_000;

/** What was seen of one process by its name. */
export interface ProcessFigures {
  peakBytes: number;
  /** Longest time in which one and the same process answered nothing, in milliseconds. */
  longestSilenceMs: number;
}

export interface ProcessViolation {
  readonly rule: "memory" | "loop";
  readonly what: string;
}

interface Silence {
  readonly pid: number;
  readonly sinceMs: number;
}

export function processWatch() {
  const figures = new Map<string, ProcessFigures>();
  const silences = new Map<string, Silence>();
  const of = (name: string): ProcessFigures => {
    const known = figures.get(name) ?? { peakBytes: 0, longestSilenceMs: 0 };
    figures.set(name, known);
    return known;
  };
  return {
    figures: figures as ReadonlyMap<string, ProcessFigures>,
    sawMemory({ name, pid }: { readonly name: string; readonly pid: number | undefined }): void {
      const known = of(name);
      known.peakBytes = Math.max(known.peakBytes, pid === undefined ? 0 : residentBytes(pid));
    },
    /** @param answered Whether it has answered just now. A refused connection counts as an answer. */
    sawAnswer(name: string, pid: number | undefined, answered: boolean, nowMs: number): void {
      const silence = silences.get(name);
      if (answered || pid === undefined) return void silences.delete(name);
      if (silence?.pid !== pid) return void silences.set(name, { pid, sinceMs: nowMs });
      const known = of(name);
      known.longestSilenceMs = Math.max(known.longestSilenceMs, nowMs - silence.sinceMs);
    },
  };
}

export function checkProcesses(figures: ReadonlyMap<string, ProcessFigures>): ProcessViolation[] {
  const violations: ProcessViolation[] = [];
  for (const [name, { peakBytes, longestSilenceMs }] of figures) {
    if (peakBytes > MEMORY_LIMIT_BYTES)
      violations.push({ rule: "memory", what: `${name} took ${Math.round(peakBytes / 2 ** 20)} MiB of memory` });
    if (longestSilenceMs > LOOP_LIMIT_MS)
      violations.push({ rule: "loop", what: `${name} answered nothing for ${Math.round(longestSilenceMs)} ms` });
  }
  return violations;
}

/** 0 if the process is gone, and where there is no procfs. */
function residentBytes(pid: number): number {
  try {
    return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "latin1"))?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}
