import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { TANDEM_COMMIT, TANDEM_VERSION } from "../../services/common/version.ts";
import { moduleUrl } from "../support/script.ts";

const root = new URL("../../", import.meta.url);

describe("the version", () => {
  it("is that of package.json, in the source and in the build", () => {
    const manifest = JSON.parse(readFileSync(new URL("package.json", root), "utf8")) as { version: string };
    assert.equal(TANDEM_VERSION, manifest.version);
    assert.equal(built("TANDEM_VERSION"), manifest.version);
  });
});

describe("the commit", () => {
  it("is the one that the build recorded", () => {
    const { commit } = JSON.parse(readFileSync(new URL("dist/build.json", root), "utf8")) as { commit: string };
    assert.equal(built("TANDEM_COMMIT"), commit);
  });

  it("of source that runs as it is is unknown, also beside a build", () => assert.equal(TANDEM_COMMIT, "unknown"));
});

function built(name: string): string {
  const script = `import { ${name} } from ${JSON.stringify(moduleUrl("dist/services/common/version.js"))}; console.log(${name});`;
  return execFileSync(process.execPath, ["--input-type=module", "--eval", script], { encoding: "utf8" }).trim();
}
