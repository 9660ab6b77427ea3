// The version of Tandem, from the one place that states it.
import { readFileSync } from "node:fs";

export const TANDEM_VERSION: string = readVersion();

/** package.json lies two folders up from the source and three from what tsc writes to dist/. */
function readVersion(): string {
  for (const path of ["../../package.json", "../../../package.json"]) {
    try {
      const manifest = JSON.parse(readFileSync(new URL(path, import.meta.url), "utf8")) as {
        name?: string;
        version?: string;
      };
      if (manifest.name === "tandem" && manifest.version !== undefined) return manifest.version;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
  }
  throw new Error("package.json of tandem is missing");
}
