// The model that comes with Tandem, where this build has it.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const NAME = "models/tandem-tiny/tandem-tiny-q8_0.gguf";

/** Its path; undefined where it is missing. It lies two folders up from the source and three from what tsc writes to dist/. */
export function shippedModel(): string | undefined {
  return ["../../", "../../../"].map((up) => fileURLToPath(new URL(up + NAME, import.meta.url))).find(existsSync);
}
