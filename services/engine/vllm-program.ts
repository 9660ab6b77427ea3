// Finds the vLLM on this machine and asks which version it is, without loading it: that takes ten seconds and more.
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { promisify } from "node:util";
import { StartError } from "../common/config.ts";
import { findOnPath, isProgram } from "../common/programs.ts";

export interface VllmProgram {
  /** To start it: program, then words before vLLM's own. */
  readonly words: readonly [string, ...string[]];
  /** `0.32.0+cpu` */
  readonly version: string;
}

type Env = Readonly<Record<string, string | undefined>>;

const ASK = "import importlib.metadata as m; print(m.version('vllm'))";
const ASK_LIMIT_MS = 120_000;

/**
 * @param command Program and words before vLLM's own, such as `python3 -m vllm.entrypoints.cli.main`. Empty: `vllm` in
 *   the active virtual environment, then on the PATH.
 * @throws StartError if no vLLM is found or its version can't be read.
 */
export async function findVllm(command: string, env: Env = process.env): Promise<VllmProgram> {
  const words = command.trim() === "" ? [search(env)] : command.trim().split(/\s+/);
  const [program, ...rest] = words as [string, ...string[]];
  const found = program.includes("/") ? program : findOnPath(program, env);
  if (found === undefined)
    throw new StartError(`--vllm.command ${command}: there is no program ${program} on the PATH.`);
  if (!isProgram(found))
    throw new StartError(`--vllm.command ${command}: ${found} is not a program that can be started.`);
  return { words: [found, ...rest], version: await versionOf(found, rest, env) };
}

function search(env: Env): string {
  const active = env["VIRTUAL_ENV"];
  const inActive = active ? join(active, "bin", "vllm") : "";
  const found = isProgram(inActive) ? inActive : findOnPath("vllm", env);
  if (found !== undefined) return found;
  throw new StartError(
    "There is no vLLM here: no `vllm` in the active virtual environment or on the PATH. Install it (pip install vllm), name it with --vllm.command PATH, or wrap one that runs elsewhere with --attach URL. Without a GPU, --engine sim needs nothing.",
  );
}

async function versionOf(program: string, rest: readonly string[], env: Env): Promise<string> {
  // The script's first line names the Python that has vLLM; asking that one takes a tenth of a second.
  const python = /^python[\d.]*$/.test(basename(program)) ? program : rest.length > 0 ? undefined : pythonOf(program);
  const said =
    python === undefined ? await run(program, [...rest, "--version"], env) : await run(python, ["-c", ASK], env);
  const version = /\d+\.\d+\S*/.exec(said.split("\n").findLast((line) => /\d+\.\d+/.test(line)) ?? "")?.[0];
  if (version === undefined)
    throw new StartError(`${program} does not report its vLLM version: ${said.trim().slice(-200)}`);
  return version;
}

function pythonOf(script: string): string | undefined {
  const line = readFileSync(script, "latin1").split("\n", 1)[0]!;
  const found = /^#!\s*(\/\S*python[\d.]*)\s*$/.exec(line)?.[1];
  return found !== undefined && isProgram(found) ? found : undefined;
}

async function run(program: string, args: readonly string[], env: Env): Promise<string> {
  try {
    return (await promisify(execFile)(program, args, { env, timeout: ASK_LIMIT_MS })).stdout;
  } catch (error) {
    const { message, stderr = "" } = error as Error & { stderr?: string };
    const why = stderr.trim().split("\n").at(-1) || message;
    throw new StartError(`${program} can't report vLLM's version: ${why}`);
  }
}
