// Which build of Tandem this is: the version that package.json states, and the commit that it was built from.
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { packageFile } from "./package-file.ts";

// The build writes it beside the built code: source must not name the commit of an older build.
const BUILD_FILE = fileURLToPath(new URL("../../build.json", import.meta.url));

export const TANDEM_VERSION: string = readJson(packageFile("package.json")!)["version"]!;

/**
 * 12 hex digits, followed by `-dirty` if files differed from that commit; `unknown` if the build had neither git nor a
 * given commit, and for source that runs without a build.
 */
export const TANDEM_COMMIT: string = existsSync(BUILD_FILE) ? readJson(BUILD_FILE)["commit"]! : "unknown";

/** Both, for people. */
export const TANDEM_BUILD = `${TANDEM_VERSION} (commit ${TANDEM_COMMIT})`;

function readJson(path: string): Readonly<Record<string, string>> {
  return JSON.parse(readFileSync(path, "utf8"));
}
