// Runs mocha over the test files and ends with the line that sums it up.
import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync, mkdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { ROOT, StepFailed, tool } from "./process.mjs";

/** Mocha flags that take a value, so that the value isn't mistaken for a path. */
const WITH_VALUE = new Set([
  "--grep",
  "-g",
  "--fgrep",
  "-f",
  "--timeout",
  "-t",
  "--reporter",
  "-R",
  "--retries",
  "--slow",
]);

/**
 * @param args Paths narrow the run; `--all` adds test/live, which needs more than Node; other flags go to mocha.
 * @returns Exit code.
 */
export async function runTests(args, env = process.env) {
  const { files, left, flags, all } = selectTests(ROOT, args, env);
  const resultFile = join(ROOT, `.tandem/test-result-${process.pid}.json`);
  mkdirSync(join(ROOT, ".tandem"), { recursive: true });
  if (isSet(env.CI)) flags.push("--forbid-only");
  const code = await mocha([...flags, ...files], {
    ...env,
    TANDEM_TEST_RESULT: resultFile,
    // Tests may fetch and build what they need (test/support/tools.ts).
    ...(all ? { TANDEM_TEST_ALL: "1" } : {}),
  });
  for (const file of left)
    console.log(
      `not run: ${file} (may need grpcurl, Python, Consul, vLLM or GPUs; CI=true or \`npm test -- --all\` runs it)`,
    );
  const { line, failed } = closingLine(takeResult(resultFile), code);
  console.log(line);
  return failed ? 1 : 0;
}

/** Returns the files to run, the files left out, the flags for mocha, and whether all tests were requested. */
export function selectTests(root, args, env) {
  const paths = [];
  const flags = [];
  let all = isSet(env.CI);
  for (let index = 0; index < args.length; index++) {
    const word = args[index];
    if (word === "--all") all = true;
    else if (WITH_VALUE.has(word)) flags.push(word, ...args.slice(++index, index + 1));
    else (word.startsWith("-") ? flags : paths).push(word);
  }
  const chosen = (paths.length === 0 ? ["test"] : paths).flatMap((path) => testFilesIn(root, path.replace(/\/+$/, "")));
  const isLeft = (file) => !all && paths.length === 0 && file.startsWith("test/live/");
  return { files: chosen.filter((file) => !isLeft(file)), left: chosen.filter(isLeft), flags, all };
}

function testFilesIn(root, path) {
  const absolute = join(root, path);
  if (!existsSync(absolute)) throw new StepFailed(`${path} does not exist`, 2);
  if (!statSync(absolute).isDirectory()) return [path];
  const found = readdirSync(absolute, { recursive: true }).filter((name) => name.endsWith(".test.ts"));
  return found.sort().map((name) => `${path}/${name.replaceAll("\\", "/")}`);
}

/** Returns "N passed, N failed", alone on its line. A mocha that died without a result counts as one failure. */
export function closingLine(result, exitCode) {
  const { passed = 0, failed = 0, skipped = 0 } = result ?? {};
  const failures = failed === 0 && exitCode !== 0 ? 1 : failed;
  return {
    line: `${passed} passed, ${failures} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`,
    failed: failures > 0,
  };
}

function takeResult(file) {
  if (!existsSync(file)) return undefined;
  const result = JSON.parse(readFileSync(file, "utf8"));
  rmSync(file);
  return result;
}

function mocha(args, env) {
  // Not mocha/bin, which would start an extra process to pass --import on.
  const child = spawn(process.execPath, ["--import=tsx", tool("mocha/lib/cli/cli.js"), ...args], {
    cwd: ROOT,
    stdio: "inherit",
    env,
  });
  const forward = (signal) => child.kill(signal);
  for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, forward);
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => resolve(code ?? 1));
  });
}

function isSet(value) {
  return value !== undefined && value !== "" && value !== "0" && value !== "false";
}
