// Files that come with Tandem beside its code.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

/**
 * The path of a file, given from the package's root; undefined where this build doesn't have it.
 * The root lies two folders up from the source and three from what tsc writes to dist/.
 */
export function packageFile(path: string): string | undefined {
  return ["../../", "../../../"].map((up) => fileURLToPath(new URL(up + path, import.meta.url))).find(existsSync);
}
