// A record on disk of every engine that runs, and the killing of those whose wrapper is gone. The guardian does that at
// once; this catches what even it missed, because it was killed as well.
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Log } from "../common/log.ts";
import { identityOf, type ProcessIdentity } from "../common/process-identity.ts";
import { removeSocketFolder } from "./socket-folder.ts";

interface Recorded {
  readonly pid: number;
  readonly startedAt: string;
}

interface EngineRecord {
  readonly wrapper: Recorded;
  readonly engine: Recorded;
  readonly group: number;
  /** Of its HTTP API, in a folder of its own. */
  readonly socketPath: string;
}

/** Records that the engine belongs to this process. Returns what removes the record. Never throws: a disk may be full. */
export function recordEngine(
  folder: string,
  { pid, group, socketPath }: { readonly pid: number; readonly group: number; readonly socketPath: string },
  log: Log,
): () => void {
  const file = join(folder, `${pid}.json`);
  try {
    const [wrapper, engine] = [process.pid, pid].map((one) => ({ pid: one, startedAt: identityOf(one)?.startedAt }));
    if (engine?.startedAt === undefined) return () => {};
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    writeFileSync(file, JSON.stringify({ wrapper, engine, group, socketPath }), { mode: 0o600 });
  } catch (error) {
    log.warn("the engine could not be recorded; only its guardian watches it", { folder, error });
  }
  return () => rmSync(file, { force: true });
}

/** Kills every recorded engine whose wrapper is gone. Returns how many. */
export function killLeftovers(folder: string, log: Log): number {
  let names: string[];
  try {
    names = readdirSync(folder).filter((name) => name.endsWith(".json"));
  } catch {
    return 0;
  }
  let killed = 0;
  for (const name of names) {
    const file = join(folder, name);
    const record = read(file);
    if (record && running(record.wrapper)) continue;
    const engine = record && running(record.engine);
    if (record && engine) {
      const { pid } = record.engine;
      // The group number is in use as long as the engine is in it, so it can't be anybody else's.
      const target = engine.group === record.group && engine.group > 1 ? -engine.group : pid;
      try {
        process.kill(target, "SIGKILL");
        killed++;
        log.warn("killed an engine that had outlived its wrapper", { pid });
      } catch (error) {
        log.warn("an engine outlived its wrapper and can't be killed", { pid, error });
        continue;
      }
    }
    if (record) removeSocketFolder(dirname(record.socketPath));
    rmSync(file, { force: true });
  }
  return killed;
}

function running({ pid, startedAt }: Recorded): ProcessIdentity | undefined {
  const now = identityOf(pid);
  return now?.startedAt === startedAt ? now : undefined;
}

function read(file: string): EngineRecord | undefined {
  try {
    const { wrapper, engine, group, socketPath = "" } = JSON.parse(readFileSync(file, "utf8")) as EngineRecord;
    const formed = [wrapper, engine].every(
      (one) => Number.isInteger(one?.pid) && one.pid > 1 && typeof one.startedAt === "string",
    );
    return formed && Number.isInteger(group) ? { wrapper, engine, group, socketPath } : undefined;
  } catch {
    return undefined;
  }
}
