// A configuration file for one test.
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

export async function configFile(written: string): Promise<AsyncDisposable & { readonly path: string }> {
  const folder = await mkdtemp(join(tmpdir(), "tandem-"));
  const path = join(folder, "tandem.yaml");
  await writeFile(path, written);
  return { path, [Symbol.asyncDispose]: () => rm(folder, { recursive: true }) };
}
