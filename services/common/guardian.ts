// Starts a program so that it can't outlive this process, however this process ends. Node has no parent-death signal,
// so a shell runs in between: it holds the other end of a pipe of ours and kills its whole process group when the pipe
// closes. The system closes the pipe even for a process killed with SIGKILL. A shell and not a second Node: 0.2 MB
// instead of 40.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import type { Readable, Stream } from "node:stream";
import { deferred } from "./clock.ts";
import { createOutputTail } from "./output-tail.ts";

// POSIX sh. fd 3 ends when our process is gone; fd 4 tells our process the program's id and how it ended. The program
// gets neither. Its standard input, fd 5 here, ends with our process too: a program that looks at it ends by itself, also
// when the guardian was killed as well. A pipe of its own, because Node makes its input non-blocking for all its readers. `$$` is the guardian's id in the subshell too, and the group's id, since it was started as group
// leader. `kill -s KILL --` and not `kill -9 --`: dash takes the latter's `--` for a process.
const SCRIPT = `
"$@" <&5 3<&- 4>&- 5<&- &
program=$!
echo "pid $program" >&4
(
  while read -r _ <&3; do :; done
  kill -s KILL -- "-$$"
) </dev/null >/dev/null 2>&1 4>&- 5<&- &
wait "$program"
echo "exit $?" >&4
exec 4>&-
kill -s KILL -- "-$$"
`;

export interface GuardedExit {
  /** Undefined if a signal ended the program, or the exit code is unknown. */
  readonly code?: number;
  readonly signal?: number;
}

export interface GuardedProcess {
  readonly pid: number;
  /** Process group of the program, its children and its guardian. */
  readonly group: number;
  /** Resolves when the program ended by itself or was killed, and the rest of its group with it. */
  readonly exited: Promise<GuardedExit>;
  /** The last lines that the program wrote, to either stream. */
  lastLines(): readonly string[];
  /** SIGTERM, then after `graceMs` SIGKILL to the whole group. Resolves when the group is gone; may be called twice. */
  stop(graceMs: number): Promise<void>;
  /** SIGKILL to the whole group. */
  kill(): void;
}

export interface GuardedCommand {
  readonly command: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly onLine?: (line: string) => void;
  /** Lines of output to keep for error messages. Default 50. */
  readonly keepLines?: number;
  /** Texts that are redacted wherever the output is shown. */
  readonly hide?: readonly string[];
}

/** @throws Error if there is no shell, or the command can't be started. */
export async function spawnGuarded(o: GuardedCommand): Promise<GuardedProcess> {
  const tail = createOutputTail(o.keepLines ?? 50, o.onLine ?? (() => {}), o.hide);
  // Detached: a group of its own, which the terminal's Ctrl-C doesn't reach and one kill ends.
  const guardian = spawn("/bin/sh", ["-c", SCRIPT, "tandem-guardian", o.command, ...o.args], {
    detached: true,
    stdio: ["ignore", "pipe", "pipe", "pipe", "pipe", "pipe"],
    env: { ...process.env, TANDEM_PARENT_PIPE: undefined, ...o.env },
  });
  guardian.stdout!.on("data", tail.push);
  guardian.stderr!.on("data", tail.push);
  // Closing it is the message; writing never happens, but an error event without a listener would end this process.
  for (const fd of [3, 5]) (guardian.stdio as readonly (Stream | null | undefined)[])[fd]!.on("error", () => {});

  const group = guardian.pid;
  const started = deferred<number>();
  const ended = deferred<GuardedExit>();
  // The caller of the start gets its failure. A rejection after the start has no consumer.
  started.promise.catch(() => {});
  let over = false;
  const killGroup = (): void => {
    if (group === undefined) return;
    try {
      process.kill(-group, "SIGKILL");
    } catch {
      // The group is empty.
    }
  };
  const end = (exit: GuardedExit): void => {
    if (over) return;
    over = true;
    killGroup();
    started.reject(new Error("the guardian ended before it had started the program"));
    ended.resolve(exit);
  };
  const report = createInterface(guardian.stdio[4] as Readable).on("line", (line) => {
    const [word, digits] = line.split(" ");
    const value = Number(digits);
    if (word === "pid") started.resolve(value);
    else if (word === "exit") end(value > 128 ? { signal: value - 128 } : { code: value });
  });
  report.on("error", () => {});
  guardian.once("error", (error) => {
    started.reject(error);
    end({});
  });
  // The guardian was killed, and the program must not go on without it. `exit` would be too early: the pipe may hold
  // more.
  guardian.stdio[4]!.once("close", () => end({}));

  const pid = await started.promise;
  return {
    pid,
    group: group!,
    exited: ended.promise,
    lastLines: tail.lines,
    kill: killGroup,
    async stop(graceMs) {
      if (over) return;
      try {
        process.kill(pid, "SIGTERM");
      } catch {
        // The process ended between the check and the signal.
      }
      const timer = setTimeout(killGroup, graceMs);
      await ended.promise;
      clearTimeout(timer);
      if (guardian.exitCode === null && guardian.signalCode === null) await once(guardian, "exit");
    },
  };
}
