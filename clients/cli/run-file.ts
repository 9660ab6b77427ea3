// What `tandem up` leaves for other commands to find it: one file a run, readable by its owner alone for the token in
// it, removed at the end. A run that was killed leaves its file; readers tell by the process that it is stale.
import { readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

export interface RunProcess {
  readonly name: string;
  readonly role: string;
  readonly pid: number;
}

export interface Run {
  readonly pid: number;
  /** Start time of that process as /proc has it, since a pid may be used again. Absent where there is no /proc. */
  readonly pidStart?: string;
  readonly startedUnixMs: number;
  readonly restUrl: string;
  readonly grpcAddress: string;
  /** The join token: whoever has it may join and control this run. */
  readonly token: string;
  readonly logDir: string;
  readonly processes: readonly RunProcess[];
}

/** `~/.local/state/tandem`, as the XDG base directory specification has it. */
export function defaultStateDir(env: Readonly<Record<string, string | undefined>> = process.env): string {
  const base = env["XDG_STATE_HOME"];
  return join(base !== undefined && base.startsWith("/") ? base : join(homedir(), ".local", "state"), "tandem");
}

export function runFilePath(stateDir: string, port: number): string {
  return join(stateDir, `run-${port}.json`);
}

/** Replaces the file in one step: a reader never sees half of it. */
export function writeRun(path: string, run: Run): void {
  const draft = `${path}.${process.pid}.tmp`;
  writeFileSync(draft, `${JSON.stringify(run, null, 2)}\n`, { mode: 0o600 });
  renameSync(draft, path);
}

/** Removes the file if it is still this process's own: another run may have taken the port since. */
export function removeRun(path: string): void {
  if (readRun(path)?.pid === process.pid) rmSync(path, { force: true });
}

/** Runs that are alive, the youngest first. */
export function liveRuns(stateDir: string): Run[] {
  return runFiles(stateDir)
    .map(readRun)
    .filter((run) => run !== undefined)
    .filter(isAlive)
    .sort((a, b) => b.startedUnixMs - a.startedUnixMs);
}

/** Removes the files of runs that were killed. */
export function removeStaleRuns(stateDir: string): void {
  for (const path of runFiles(stateDir)) {
    const run = readRun(path);
    if (run !== undefined && !isAlive(run)) rmSync(path, { force: true });
  }
}

function runFiles(stateDir: string): string[] {
  try {
    return readdirSync(stateDir)
      .filter((name) => /^run-\d+\.json$/.test(name))
      .map((name) => join(stateDir, name));
  } catch {
    return []; // Nothing ever ran here.
  }
}

/** Start time of a process in clock ticks since boot. Undefined when it is gone, or where there is no /proc. */
export function processStart(pid: number): string | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "latin1");
    return text.slice(text.lastIndexOf(")") + 2).split(" ")[19];
  } catch {
    return undefined;
  }
}

function isAlive(run: Run): boolean {
  try {
    process.kill(run.pid, 0);
  } catch {
    return false;
  }
  return run.pidStart === undefined || run.pidStart === processStart(run.pid);
}

function readRun(path: string): Run | undefined {
  try {
    const run = JSON.parse(readFileSync(path, "utf8")) as Run;
    return typeof run.pid === "number" && typeof run.restUrl === "string" ? run : undefined;
  } catch {
    return undefined; // Gone, or not one of ours.
  }
}
