import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { TANDEM_VERSION } from "../../services/common/version.ts";

describe("the version", () => {
  it("is that of package.json", () => {
    const manifest = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as {
      version: string;
    };
    assert.equal(TANDEM_VERSION, manifest.version);
  });
});
