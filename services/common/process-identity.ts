// When a process started, according to the system. Start time and id together name a process permanently; the id alone
// may belong to another process later.
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";

export interface ProcessIdentity {
  /** Opaque; equal for the same process only. */
  readonly startedAt: string;
  /** Id of its process group. */
  readonly group: number;
}

/** Undefined if there is no such process. */
export function identityOf(pid: number): ProcessIdentity | undefined {
  return process.platform === "linux" ? fromProc(pid) : fromPs(pid);
}

/**
 * Fields of /proc/PID/stat from `state` on, at index 0; proc(5) counts it as the third. Undefined if there is no such
 * process, or no /proc.
 */
export function statFields(pid: number): readonly string[] | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    // "pid (name) state ppid pgrp ..."; the name may hold spaces and brackets.
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  } catch {
    return undefined;
  }
}

function fromProc(pid: number): ProcessIdentity | undefined {
  const fields = statFields(pid);
  if (fields === undefined || fields[0] === "Z") return undefined;
  const boot = readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim();
  return { startedAt: `${boot}:${fields[19]}`, group: Number(fields[2]) };
}

function fromPs(pid: number): ProcessIdentity | undefined {
  const env = { ...process.env, LC_ALL: "C" };
  const { stdout } = spawnSync("ps", ["-o", "pgid=,lstart=", "-p", String(pid)], { env, encoding: "utf8" });
  const found = /^\s*(\d+)\s+(.+?)\s*$/.exec(stdout ?? "");
  return found === null ? undefined : { startedAt: found[2]!, group: Number(found[1]) };
}
