// Which build of Tandem this is: the version that package.json states, and the commit that it was built from.
import { readFileSync } from "node:fs";
import { packageFile } from "./package-file.ts";

export const TANDEM_VERSION: string = readVersion();

/**
 * 12 hex digits, followed by `-dirty` if files differed from that commit; `unknown` if the build had neither git nor a
 * given commit, and for source that runs without a build.
 */
export const TANDEM_COMMIT: string = readCommit();

/** Both, for people. */
export const TANDEM_BUILD = `${TANDEM_VERSION} (commit ${TANDEM_COMMIT})`;

function readVersion(): string {
  const manifest = packageFile("package.json");
  if (manifest === undefined) throw new Error("Tandem's package.json is missing");
  return (JSON.parse(readFileSync(manifest, "utf8")) as { version: string }).version;
}

/** Read from beside the built code, where the build writes it: source must not name the commit of an older build. */
function readCommit(): string {
  try {
    return (JSON.parse(readFileSync(new URL("../../build.json", import.meta.url), "utf8")) as { commit: string })
      .commit;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    return "unknown";
  }
}
