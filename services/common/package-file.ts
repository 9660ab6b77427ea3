// Files that ship with Tandem beside its code. Only this file knows where the package's root is.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** Two folders up from the source, three from what tsc writes to dist/. */
const ROOT =
  ["../../", "../../../"].find((up) => existsSync(new URL(`${up}package.json`, import.meta.url))) ?? "../../";

/** The path of a file, given from the package's root; undefined if this package was installed without it. */
export function packageFile(path: string): string | undefined {
  const file = fileURLToPath(new URL(ROOT + path, import.meta.url));
  return existsSync(file) ? file : undefined;
}

/** Path of the small model that ships with Tandem, a GGUF file; undefined if this build doesn't have it. */
export function shippedModel(): string | undefined {
  return packageFile("models/tandem-tiny/tandem-tiny-q8_0.gguf");
}
