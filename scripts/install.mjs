// Checks whether the packages of the lock are installed, and runs `npm ci` if not.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { runQuietly } from "./process.mjs";

/**
 * Whether node_modules holds what package-lock.json asks for on this machine, by npm's own record of what it installed.
 * Reads two files, and doesn't check the packages themselves.
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

/** Platform packages for the other C library may be missing; only npm knows which one applies. */
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
 * No install scripts run, because every binary that Tandem needs is in a package for its platform. Settings that leave
 * out the tools (NODE_ENV=production, omit=dev) are meant for users who install Tandem, not for its clone.
 */
export async function npmCi() {
  const env = { ...process.env };
  for (const name of Object.keys(env)) {
    if (/^(NODE_ENV|npm_config_(production|only|omit|include|also|dry_run|global))$/i.test(name)) delete env[name];
  }
  const args = ["ci", "--include=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"];
  const npm = process.env.npm_execpath;
  // `npm start` uses the same npm again; a plain `node scripts/run.mjs` uses the one on the PATH.
  if (npm !== undefined && /npm-cli\.[cm]?js$/.test(npm)) {
    await runQuietly("npm ci", process.execPath, [npm, ...args], { env, lines: 12 });
  } else await runQuietly("npm ci", "npm", args, { env, lines: 12 });
}
