// The folder for what outlives a process: run files, logs, records of engines and their ports.
import { homedir } from "node:os";
import { isAbsolute, join } from "node:path";
import { text } from "./config.ts";

/** Of every program that keeps something there, or looks for it. */
export const stateDirSetting = {
  "state.dir": text({
    optional: true,
    doc: "Folder for run files, logs and records of engines. Left out: tandem in XDG_STATE_HOME, ~/.local/state/tandem.",
  }),
};

type Env = Readonly<Record<string, string | undefined>>;

export function stateDirOf(config: { readonly "state.dir": string | undefined }, env: Env = process.env): string {
  if (config["state.dir"] !== undefined && config["state.dir"] !== "") return config["state.dir"];
  const base = env["XDG_STATE_HOME"] ?? "";
  // The XDG base directory specification: a relative path is to be ignored.
  return join(isAbsolute(base) ? base : join(homedir(), ".local", "state"), "tandem");
}
