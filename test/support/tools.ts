// Programs of others that tests use: found where they are, fetched into the user's cache where tests may do so.
import { execFile } from "node:child_process";
import { access, mkdir } from "node:fs/promises";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";

const exec = promisify(execFile);
const CACHE = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "tandem");

const GRPCURL_VERSION = "v1.9.4";
const OPENAI_PYTHON_VERSION = "3.54.0";

/** Tests may install things only when asked to: CI=true or `npm test -- --all`. */
export const MAY_FETCH = process.env["CI"] === "true" || process.env["TANDEM_TEST_ALL"] === "1";

/** Path of grpcurl, or why there is none. */
export async function grpcurl(): Promise<{ path: string } | { missing: string }> {
  const bin = join(CACHE, "bin");
  const found = await firstOf([process.env["GRPCURL"], ...searchPath("grpcurl"), join(bin, "grpcurl")]);
  if (found !== undefined) return { path: found };
  if (!MAY_FETCH) return { missing: "grpcurl is not installed" };
  await mkdir(bin, { recursive: true });
  await exec("go", ["install", `github.com/fullstorydev/grpcurl/cmd/grpcurl@${GRPCURL_VERSION}`], {
    env: { ...process.env, GOBIN: bin },
  });
  return { path: join(bin, "grpcurl") };
}

/** Path of a Python that has the openai package, or why there is none. */
export async function pythonWithOpenai(): Promise<{ path: string } | { missing: string }> {
  const venv = join(CACHE, `openai-python-${OPENAI_PYTHON_VERSION}`);
  const python = join(venv, "bin", "python");
  const works = () => exec(python, ["-c", "import openai"]).then(() => true, () => false);
  if (await works()) return { path: python };
  if (!MAY_FETCH) return { missing: "openai-python is not installed" };
  await mkdir(CACHE, { recursive: true });
  await exec("python3", ["-m", "venv", venv]);
  await exec(python, ["-m", "pip", "install", "-q", `openai==${OPENAI_PYTHON_VERSION}`]);
  return { path: python };
}

function searchPath(name: string): string[] {
  return (process.env["PATH"] ?? "").split(delimiter).map((folder) => join(folder, name));
}

async function firstOf(paths: readonly (string | undefined)[]): Promise<string | undefined> {
  for (const path of paths) {
    if (path !== undefined && path !== "" && (await access(path).then(() => true, () => false))) return path;
  }
  return undefined;
}
