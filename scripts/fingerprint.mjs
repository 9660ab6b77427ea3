// Detects whether files changed since their output was made: first by size and time, which takes a few milliseconds,
// then by content, so that a checkout that only touched the files rebuilds nothing.
import { createHash } from "node:crypto";
import { lstatSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";

/**
 * @typedef {{ stat: string, content: string }} Stamp
 * @typedef {{ root: string, paths: readonly string[], extra: string }} Inputs
 *   Files and folders, and text that also counts as input.
 */

/**
 * True if the stamp at `stampPath` was written for `inputs` as they are now. A stamp with old times but the same
 * content is updated.
 */
export function isFresh(stampPath, inputs) {
  let stamp;
  try {
    stamp = JSON.parse(readFileSync(stampPath, "utf8"));
  } catch {
    return false;
  }
  const files = filesOf(inputs);
  const stat = statHash(inputs, files);
  if (stamp.stat === stat) return true;
  if (stamp.content !== contentHash(inputs, files)) return false;
  writeStamp(stampPath, { stat, content: stamp.content });
  return true;
}

/**
 * Returns the stamp of the current `inputs`. Taken before the work, so that a change during it is noticed afterwards.
 */
export function stampOf(inputs) {
  const files = filesOf(inputs);
  return { stat: statHash(inputs, files), content: contentHash(inputs, files) };
}

export function writeStamp(stampPath, stamp) {
  mkdirSync(dirname(stampPath), { recursive: true });
  writeFileSync(stampPath, JSON.stringify(stamp));
}

function filesOf({ root, paths }) {
  const files = [];
  const visit = (path) => {
    const stats = lstatSync(join(root, path), { throwIfNoEntry: false });
    if (stats === undefined) return;
    if (!stats.isDirectory()) files.push({ path, size: stats.size, mtimeMs: stats.mtimeMs });
    else for (const name of readdirSync(join(root, path)).sort()) if (!name.startsWith(".")) visit(`${path}/${name}`);
  };
  for (const path of paths) visit(path);
  return files;
}

function statHash({ extra }, files) {
  const hash = createHash("sha256").update(extra);
  for (const { path, size, mtimeMs } of files) hash.update(`\0${path}\0${size}\0${mtimeMs}`);
  return hash.digest("hex");
}

function contentHash({ root, extra }, files) {
  const hash = createHash("sha256").update(extra);
  for (const { path } of files) hash.update(`\0${path}\0`).update(readFileSync(join(root, path)));
  return hash.digest("hex");
}
