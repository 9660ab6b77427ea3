// The packages: whether those of the lock are there, and `npm ci` when they are not.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { runQuietly } from "./process.mjs";

/**
 * Whether node_modules holds what package-lock.json asks for on this machine, by npm's own record of what it installed.
 * Reads two files; doesn't look into packages.
 */
export function isInstalled(root) {
  const record = join(root, "node_modules/.package-lock.json");
  if (!existsSync(record)) return false;
  const wanted = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")).packages;
  const present = JSON.parse(readFileSync(record, "utf8")).packages;
  return Object.entries(wanted).every(([path, entry]) => {
    if (path === "" || (entry.optional === true && !isForHere(entry))) return true;
    return present[path]?.version === entry.version && existsSync(join(root, path));
  });
}

/** Platform packages of the C library that isn't ours may be missing; npm alone knows which one it is. */
function isForHere({ os, cpu, libc }) {
  return matches(os, process.platform) && matches(cpu, process.arch) && libc === undefined;
}

function matches(list, value) {
  return (
    list === undefined ||
    list.includes(value) ||
    (list.every((item) => item.startsWith("!")) && !list.includes(`!${value}`))
  );
}

/**
 * No install script runs: every binary that Tandem needs comes as a package of its platform. Settings that would leave
 * the tools out (NODE_ENV=production, omit=dev) are for those who install Tandem, not for its clone.
 */
export async function npmCi() {
  const env = { ...process.env };
  for (const name of Object.keys(env)) {
    if (/^(NODE_ENV|npm_config_(production|only|omit|include|also|dry_run|global))$/i.test(name)) delete env[name];
  }
  const args = ["ci", "--include=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"];
  const npm = process.env.npm_execpath;
  // Under `npm start` the same npm; a plain `node scripts/run.mjs` takes the one on the path.
  if (npm !== undefined && /npm-cli\.[cm]?js$/.test(npm)) {
    await runQuietly("npm ci", process.execPath, [npm, ...args], { env, lines: 12 });
  } else await runQuietly("npm ci", "npm", args, { env, lines: 12 });
}
