// The processes that `tandem up` started, found through /proc: the engines are nobody's to name but their wrappers'.
import { readFileSync } from "node:fs";

/** A process and everything below it. */
export function familyOf(pid: number): number[] {
  return [pid, ...childrenOf(pid).flatMap(familyOf)];
}

export function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ").trim();
  } catch {
    return "";
  }
}

/** The engine below the instance with this pid: vLLM's API server first. Without the guardian's shells. */
export function engineOf(instancePid: number): { readonly pids: readonly number[]; readonly url: string } {
  const pids = familyOf(instancePid).filter((pid) => pid !== instancePid && !commandOf(pid).startsWith("/bin/sh "));
  const socketPath = /--uds[ =](\S+)/.exec(commandOf(pids[0] ?? 0))?.[1];
  if (socketPath === undefined) throw new Error(`no engine below process ${instancePid}`);
  return { pids, url: `unix:${socketPath}` };
}

function childrenOf(pid: number): number[] {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8")
      .trim()
      .split(" ")
      .filter((one) => one !== "")
      .map(Number);
  } catch {
    return [];
  }
}
