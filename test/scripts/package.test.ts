// What `npm pack` would ship. test/live/package.test.ts installs it and runs it.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { posix } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const read = (path: string): string => readFileSync(`${ROOT}${path}`, "utf8");
const manifest = JSON.parse(read("package.json")) as {
  readonly name: string;
  readonly private?: boolean;
  readonly types: string;
  readonly bin: Readonly<Record<string, string>>;
  readonly exports: Readonly<Record<string, string | Readonly<Record<string, string>>>>;
};

describe("the npm package", function () {
  this.timeout(60_000);
  let shipped: string[] = [];
  before(() => {
    const output = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], {
      cwd: ROOT,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    });
    const [{ files }] = JSON.parse(output) as [{ files: { path: string }[] }];
    shipped = files.map(({ path }) => path);
  });

  const missing = (wanted: readonly string[]): string[] =>
    wanted.map((path) => posix.normalize(path)).filter((path) => !shipped.includes(path));

  it("can be published, and holds the program, what it exports, and the model", () => {
    assert.equal(manifest.private, undefined);
    const exported = Object.values(manifest.exports)
      .flatMap((target) => (typeof target === "string" ? [target] : Object.values(target)))
      .map((target) => target.replace("*", "router/v1/router"));
    assert.deepEqual(missing([manifest.types, ...Object.values(manifest.bin), ...exported]), []);
    const beside = [
      "dist/build.json",
      "dist/services/tiny-engine/llama/kernel.wasm",
      "models/tandem-tiny/tandem-tiny-q8_0.gguf",
      "LICENSE",
      "README.md",
      "CHANGELOG.md",
    ];
    assert.deepEqual(missing(beside), []);
  });

  it("holds all that its files import", () => {
    const imports = shipped
      .filter((file) => file.endsWith(".js"))
      .flatMap((file) =>
        [...read(file).matchAll(/(?:\bfrom\s*|\bimport\s*\(?\s*)"(\.{1,2}\/[^"]+|#gen\/[^"]+)"/g)].map(([, target]) =>
          target!.startsWith("#") ? target!.slice(1) : posix.join(posix.dirname(file), target!),
        ),
      );
    assert.ok(imports.length > 500, `${imports.length} imports found`);
    assert.deepEqual(missing(imports), []);
  });

  it("holds nothing that only a clone uses", () => {
    const idle = shipped.filter((file) =>
      /^(test|scripts|services|clients|proto|docs)\/|\.map$|(?<!\.d)\.ts$|\/\./.test(file),
    );
    assert.deepEqual(idle, []);
  });
});
