// The folder for files that outlive a process: run files, logs, records of engines and their ports.
import { homedir } from "node:os";
import { isAbsolute, join } from "node:path";
import { text } from "./config.ts";

/** A setting of every program that uses the folder. */
export const stateDir = text(
  "state.dir",
  "Folder for run files, logs and records of engines. Left out: tandem in XDG_STATE_HOME, or ~/.local/state/tandem.",
  { optional: true },
);

type Env = Readonly<Record<string, string | undefined>>;

export function stateDirOf(config: { readonly stateDir: string | undefined }, env: Env = process.env): string {
  if (config.stateDir !== undefined && config.stateDir !== "") return config.stateDir;
  const base = env["XDG_STATE_HOME"] ?? "";
  // The XDG base directory specification: a relative path must be ignored.
  return join(isAbsolute(base) ? base : join(homedir(), ".local", "state"), "tandem");
}
