// Reads the imports from the source, for test/tidy.test.ts, which checks the rules, and for the picture of the imports.
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join, posix } from "node:path";
import { ROOT } from "./process.mjs";

/** All files at any depth, by their paths from the root. */
export function filesUnder(folder) {
  if (!existsSync(join(ROOT, folder))) return [];
  return readdirSync(join(ROOT, folder), { recursive: true, encoding: "utf8" })
    .map((name) => posix.join(folder, name.replaceAll("\\", "/")))
    .filter((file) => statSync(join(ROOT, file)).isFile())
    .sort();
}

/** @returns `{ file, target, lazy, typeOnly }` for each; `target` is a path from the root, or the name of a package. */
export function importsOf(file) {
  const text = readFileSync(join(ROOT, file), "utf8");
  const found = [];
  const add = (specifier, lazy, typeOnly) => {
    const target = specifier.startsWith(".") ? posix.join(posix.dirname(file), specifier) : specifier;
    found.push({ file, target, lazy, typeOnly });
  };
  for (const [, type, specifier] of text.matchAll(/^(?:import|export)(\s+type)?\b[^;"']*?\bfrom\s+["']([^"']+)["']/gm))
    add(specifier, false, type !== undefined);
  for (const [, specifier] of text.matchAll(/^import\s+["']([^"']+)["']/gm)) add(specifier, false, false);
  for (const [, typeOf, specifier] of text.matchAll(/(\btypeof\s+)?\bimport\(\s*["']([^"']+)["']/g))
    add(specifier, true, typeOf !== undefined);
  for (const [, specifier] of text.matchAll(/\brequire\(\s*["']([^"']+)["']\)/g)) add(specifier, false, false);
  return found;
}
