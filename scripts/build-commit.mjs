// The commit of a build, stored in dist/build.json beside the built code.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const FILE = "build.json";

/**
 * 12 hex digits, followed by `-dirty` if tracked files differ from the commit. `SOURCE_COMMIT` in the environment wins,
 * for builds without git, such as an image's; with neither it is `unknown`.
 */
export function sourceCommit(root, env = process.env) {
  if (env.SOURCE_COMMIT) return env.SOURCE_COMMIT.slice(0, 12);
  // A copy of the source without .git may lie in another repository, whose commit says nothing about it.
  if (!existsSync(join(root, ".git"))) return "unknown";
  const args = ["--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"];
  try {
    return execFileSync("git", args, { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  } catch {
    return "unknown";
  }
}

/** Writes `commit` into the build in `dist`, so that a later commit of the same files needs no new build. */
export function writeCommit(dist, commit) {
  if (readCommit(dist) === commit) return;
  const [file, part] = [join(dist, FILE), join(dist, `${FILE}.${process.pid}`)];
  writeFileSync(part, `${JSON.stringify({ commit })}\n`);
  // Moved into place, because a program may be starting from this build.
  renameSync(part, file);
}

function readCommit(dist) {
  try {
    return JSON.parse(readFileSync(join(dist, FILE), "utf8")).commit;
  } catch {
    return undefined;
  }
}
