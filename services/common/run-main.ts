// The top of every process: turns how `main` ended into output and an exit code.
import { ServiceError } from "./errors.ts";
import { stackOf } from "./log.ts";

/** A configuration that can't be used. `message` says what is wrong, where, and what was expected. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

/** A start that failed for a reason that the user can fix: printed without a stack, exit code 1. */
export class StartError extends Error {
  override readonly name = "StartError";
}

/** `--help` or `--print-config` was given; `text` is to be printed, and nothing else is to be done. */
export class PrintAndExit extends Error {
  override readonly name = "PrintAndExit";
  readonly text: string;

  constructor(text: string) {
    super("only a text was asked for");
    this.text = text;
  }
}

/**
 * Runs `main`. Exit code 2 for a ConfigError, 0 for PrintAndExit, 1 for anything else thrown; otherwise the process
 * ends when nothing is left to do.
 */
export function runMain(main: () => Promise<void>): void {
  // The reader of our output is gone (`| head`, a dead parent). That is not a reason to die in the middle of a drain.
  for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {});
  main().catch((error: unknown) => {
    const { code, stdout = "", stderr = "" } = outcomeOf(error);
    process.stdout.write(stdout, () => process.stderr.write(stderr, () => process.exit(code)));
  });
}

function outcomeOf(error: unknown): { code: number; stdout?: string; stderr?: string } {
  if (error instanceof PrintAndExit) return { code: 0, stdout: error.text };
  if (error instanceof ConfigError) return { code: 2, stderr: `${error.message}\n` };
  if (isExpected(error)) return { code: 1, stderr: `${error.message}\n` };
  return { code: 1, stderr: `${error instanceof Error ? stackOf(error) : String(error)}\n` };
}

function isExpected(error: unknown): error is Error {
  if (!(error instanceof Error)) return false;
  if (error instanceof StartError || (error instanceof ServiceError && error.code !== "internal")) return true;
  const code = (error as NodeJS.ErrnoException).code ?? (error.cause as NodeJS.ErrnoException | undefined)?.code;
  return code === "EADDRINUSE" || code === "EADDRNOTAVAIL" || code === "EACCES";
}
