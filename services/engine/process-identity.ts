// When a process started, as the system tells it: with its id, that names a process for good, where the id alone may
// belong to another one later.
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";

export interface ProcessIdentity {
  /** Opaque; equal for the same process only. */
  readonly startedAt: string;
  /** Id of its process group. */
  readonly group: number;
}

/** Undefined where there is no such process. */
export async function identityOf(pid: number): Promise<ProcessIdentity | undefined> {
  return process.platform === "linux" ? fromProc(pid) : fromPs(pid);
}

function fromProc(pid: number): ProcessIdentity | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    // proc(5): "pid (name) state ppid pgrp ... starttime(22nd)"; the name may hold spaces and brackets.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim();
    if (fields[0] === "Z") return undefined;
    return { startedAt: `${boot}:${fields[19]}`, group: Number(fields[2]) };
  } catch {
    return undefined;
  }
}

function fromPs(pid: number): Promise<ProcessIdentity | undefined> {
  return new Promise((resolve) => {
    execFile(
      "ps",
      ["-o", "pgid=,lstart=", "-p", String(pid)],
      { env: { ...process.env, LC_ALL: "C" } },
      (error, stdout) => {
        const found = /^\s*(\d+)\s+(.+?)\s*$/.exec(stdout);
        resolve(error !== null || found === null ? undefined : { startedAt: found[2]!, group: Number(found[1]) });
      },
    );
  });
}
