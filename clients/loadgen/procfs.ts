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
  return Number(line.exec(read(file) ?? "")?.[1] ?? Number.NaN) * 1024;
}

/** The process and all below it, parents first. */
export function processTree(root: number): number[] {
  const children = new Map<number, number[]>();
  for (const name of list("/proc")) {
    const pid = Number(name);
    if (!Number.isInteger(pid)) continue;
    const parent = Number(statFields(pid)?.[1]);
    if (Number.isNaN(parent)) continue;
    const siblings = children.get(parent);
    if (siblings === undefined) children.set(parent, [pid]);
    else siblings.push(pid);
  }
  const tree = [root];
  for (let index = 0; index < tree.length; index++) tree.push(...(children.get(tree[index]!) ?? []));
  return tree;
}

/** Arguments of a process, program first. Empty if the process is gone. */
export function commandLine(pid: number): string[] {
  const text = read(`/proc/${pid}/cmdline`) ?? "";
  return text.split("\0").filter((argument) => argument !== "");
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined; // Gone, or not Linux.
  }
}

function list(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}
