// The run file by which other commands find a `tandem up`. Only its owner can read the file, because it holds the
// token. A run removes its file at the end. A killed run leaves its file behind; readers see from the process that the
// file is stale.
import { readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { identityOf } from "../../services/common/process-identity.ts";
import type { TlsSettings } from "../../services/rpc/tls-settings.ts";

export interface Run {
  /** Name of the deployment, unique among those that run at the same time. */
  readonly name: string;
  readonly pid: number;
  /** When that process started, as `identityOf` reports it, because a pid may be reused. */
  readonly pidStart: string;
  readonly startedUnixMs: number;
  readonly restUrl: string;
  readonly grpcAddress: string;
  /** The certificates of its processes, if they use TLS. */
  readonly tls?: TlsSettings;
  /** The join token, which permits joining and controlling this run. */
  readonly token: string;
  readonly logDir: string;
  readonly processes: readonly { readonly name: string; readonly role: string; readonly pid: number }[];
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

/** Runs that are alive, the newest first. */
export function liveRuns(stateDir: string): Run[] {
  const runs = runFiles(stateDir)
    .map(readRun)
    .filter((run) => run !== undefined);
  return runs.filter(isAlive).sort((a, b) => b.startedUnixMs - a.startedUnixMs);
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
    const names = readdirSync(stateDir).filter((name) => /^run-\d+\.json$/.test(name));
    return names.map((name) => join(stateDir, name));
  } catch {
    return []; // Nothing ever ran here.
  }
}

function isAlive({ pid, pidStart }: Run): boolean {
  return identityOf(pid)?.startedAt === pidStart;
}

function readRun(path: string): Run | undefined {
  try {
    const run = JSON.parse(readFileSync(path, "utf8")) as Run;
    return [run.name, run.pidStart, run.restUrl].every((field) => typeof field === "string") ? run : undefined;
  } catch {
    return undefined; // Gone, or not one of ours.
  }
}
