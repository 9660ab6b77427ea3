// The small model that comes with Tandem.
import { packageFile } from "./package-file.ts";

/** Path of its GGUF file; undefined where this build doesn't have it. */
export function shippedModel(): string | undefined {
  return packageFile("models/tandem-tiny/tandem-tiny-q8_0.gguf");
}
