// One folder of log files per run. Old folders are removed.
import { mkdirSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { StartError } from "../../../services/common/config.ts";
import { liveRuns } from "../run-file.ts";

/** Number of runs whose logs are kept. */
const KEPT_RUNS = 20;

/**
 * @param port REST port of the run, so that two runs started in the same second have different folders.
 * @throws StartError when the folder can't be made.
 */
export function makeLogFolder(stateDir: string, port: number): string {
  const logs = join(stateDir, "logs");
  const path = join(logs, `${new Date().toISOString().slice(0, 19).replaceAll(":", "")}-${port}`);
  try {
    mkdirSync(stateDir, { recursive: true, mode: 0o700 });
    mkdirSync(path, { recursive: true, mode: 0o700 });
    // Names begin with the time, so they sort by age.
    const old = readdirSync(logs)
      .sort()
      .slice(0, -KEPT_RUNS)
      .map((name) => join(logs, name));
    const inUse = new Set(old.length === 0 ? [] : liveRuns(stateDir).map((run) => run.logDir));
    for (const folder of old) if (!inUse.has(folder)) rmSync(folder, { recursive: true, force: true });
  } catch (error) {
    throw new StartError(
      `The folder for logs can't be created: ${(error as Error).message}. Choose another with --state.dir.`,
    );
  }
  return path;
}
