// Runs tools and reports progress.
import { spawn } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));

/** A failure whose message explains it to the user in full, without a stack. */
export class StepFailed extends Error {
  expected = true;

  constructor(message, exitCode = 1) {
    super(message);
    this.exitCode = exitCode;
  }
}

/** Prints a line of progress on standard error. */
export function say(line) {
  const coloured = process.stderr.isTTY && !process.env.NO_COLOR;
  process.stderr.write(coloured ? `\x1b[2mtandem: ${line}\x1b[0m\n` : `tandem: ${line}\n`);
}

/** The JavaScript file of an installed tool. Run by node, it needs no shell and no .bin links. */
export function tool(path) {
  return join(ROOT, "node_modules", path);
}

/** Runs a tool to its end, with our own standard output and error. */
export async function run(name, script, args, env = process.env) {
  const child = spawn(process.execPath, [script, ...args], { cwd: ROOT, stdio: ["ignore", "inherit", "inherit"], env });
  const code = await ended(child);
  if (code !== 0) throw new StepFailed(`tandem: ${name} failed`);
}

/**
 * Like `run`, but shows output only on failure, and then the first `lines`: compilers and npm print the reason first.
 */
export async function runQuietly(name, command, args, { env = process.env, lines = 60 } = {}) {
  const child = spawn(command, args, { cwd: ROOT, stdio: ["ignore", "pipe", "pipe"], env });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (text) => (output += text));
  const code = await ended(child);
  if (code === 0) return;
  const all = output.trimEnd().split("\n");
  const left = all.length > lines ? `\n... ${all.length - lines} more lines` : "";
  throw new StepFailed(`${all.slice(0, lines).join("\n")}${left}\ntandem: ${name} failed`);
}

/** Resolves with the exit code of `child`, which ends with this process. 128 or more: ended by a signal. */
function ended(child) {
  return new Promise((resolve, reject) => {
    const stop = (signal) => child.kill(signal);
    const signals = ["SIGINT", "SIGTERM", "SIGHUP"];
    for (const signal of signals) process.on(signal, stop);
    child.once("error", reject);
    child.once("close", (code, signal) => {
      for (const name of signals) process.off(name, stop);
      // A Ctrl-C or signal that ended the step was meant for the whole run.
      if (signals.includes(signal)) process.kill(process.pid, signal);
      else resolve(code ?? 128);
    });
  });
}
