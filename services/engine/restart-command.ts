// The operator's command that restarts an attached engine: Tandem did not start it, so it can't start it again itself.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import type { Clock } from "../common/clock.ts";
import type { Log } from "../common/log.ts";

/** `systemctl restart` waits for the old process, which may end its requests first. */
const TIMEOUT_MS = 300_000;

export interface RestartCommand {
  /** For the shell. */
  readonly command: string;
  /** URL of the engine. */
  readonly url: string;
  readonly log: Log;
  readonly clock: Clock;
}

/**
 * Runs the command. Resolves when it has ended with exit code 0.
 *
 * @param why Why the engine must be restarted.
 * @throws Error that says how it failed; the signal's reason
 */
export async function runRestartCommand(
  { command, url, log, clock }: RestartCommand,
  why: string,
  signal: AbortSignal,
) {
  signal.throwIfAborted();
  log.warn("running engine.restart_command", { command, why });
  const child = spawn("/bin/sh", ["-c", command], {
    // With the programs that it starts, so that all of them can be stopped.
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
    env: {
      ...process.env,
      // Not its business.
      TANDEM_TOKEN: undefined,
      TANDEM_ENGINE_URL: url,
      TANDEM_RESTART_REASON: why,
    },
  });
  // Read to their end: an engine that the command left running may write to them.
  for (const output of [child.stdout, child.stderr])
    createInterface({ input: output }).on("line", (line) => log.info("engine.restart_command says", { line }));
  const kill = (): void => {
    try {
      process.kill(-child.pid!, "SIGKILL");
    } catch {
      // It has ended.
    }
  };
  let late = false;
  const timer = clock.setTimer(TIMEOUT_MS, () => {
    late = true;
    kill();
  });
  signal.addEventListener("abort", kill, { once: true });
  try {
    await new Promise<void>((resolve, reject) => {
      child.once("error", reject);
      // Not `close`: an engine that it left running keeps the outputs open.
      child.once("exit", (code, by) => {
        if (code === 0) resolve();
        else if (late) reject(new Error(`engine.restart_command did not end within ${TIMEOUT_MS / 1_000} s`));
        else reject(new Error(`engine.restart_command ended with ${code === null ? by : `exit code ${code}`}`));
      });
    });
  } finally {
    timer.cancel();
    signal.removeEventListener("abort", kill);
    signal.throwIfAborted();
    // What it left running must not keep this process.
    (child.stdout as unknown as { unref(): void }).unref();
    (child.stderr as unknown as { unref(): void }).unref();
  }
}
