// What the kernel reports about a process. Linux only: elsewhere the figures are NaN, and the tables show a dash.
import { readFileSync, readdirSync } from "node:fs";
import { statFields } from "../../services/common/process-identity.ts";

/** Clock ticks per second in /proc; 100 on every Linux that Node runs on. */
const TICKS_PER_S = 100;

/** CPU time that a process has used in user and kernel, in milliseconds, to 10 ms. NaN if the process is gone. */
export function cpuMs(pid: number): number {
  const fields = statFields(pid);
  if (fields === undefined) return Number.NaN;
  return ((Number(fields[11]) + Number(fields[12])) * 1000) / TICKS_PER_S;
}

/**
 * Proportional set size in bytes: its own memory plus its share of shared memory, so that the figures of several
 * processes can be added. NaN if the process is gone.
 */
export function pssBytes(pid: number): number {
  return kibOf(`/proc/${pid}/smaps_rollup`, /^Pss:\s+(\d+) kB/m);
}

/** Resident set size in bytes, shared pages included. NaN if the process is gone. */
export function rssBytes(pid: number): number {
  return kibOf(`/proc/${pid}/status`, /^VmRSS:\s+(\d+) kB/m);
}

function kibOf(file: string, line: RegExp): number {
  return Number(line.exec(read(file))?.[1] ?? Number.NaN) * 1024;
}

/** The process and all below it, parents first. */
export function processTree(root: number): number[] {
  const pids = (attempt(() => readdirSync("/proc")) ?? []).map(Number).filter(Number.isInteger);
  const parents = pids.map((pid) => ({ pid, parent: Number(statFields(pid)?.[1]) }));
  const tree = [root];
  // Grows while it is walked.
  for (const known of tree) tree.push(...parents.filter(({ parent }) => parent === known).map(({ pid }) => pid));
  return tree;
}

/** Arguments of a process, program first. Empty if the process is gone. */
export function commandLine(pid: number): string[] {
  return read(`/proc/${pid}/cmdline`)
    .split("\0")
    .filter((argument) => argument !== "");
}

function read(path: string): string {
  return attempt(() => readFileSync(path, "utf8")) ?? "";
}

/** Undefined if the process is gone, or this is not Linux. */
function attempt<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch {
    return undefined;
  }
}
