// The small model that ships with Tandem.
import { packageFile } from "./package-file.ts";

/** Path of its GGUF file; undefined if this build doesn't have it. */
export function shippedModel(): string | undefined {
  return packageFile("models/tandem-tiny/tandem-tiny-q8_0.gguf");
}
