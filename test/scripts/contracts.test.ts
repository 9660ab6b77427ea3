// `npm run lint` compares the contracts with those of the last release: that it sees a break, and lets additions through.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const INSTANCE = "proto/tandem/instance/v1/instance.proto";

describe("the contracts", () => {
  let folder = "";
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "tandem-contracts-"));
    for (const name of ["proto", "buf.yaml", "test/fixtures/proto-baseline.binpb"])
      await cp(join(ROOT, name), join(folder, name), { recursive: true });
  });
  afterEach(() => rm(folder, { recursive: true }));

  /** "ok", or what buf has against the change. */
  async function compare(change: (text: string) => string): Promise<string> {
    const text = await readFile(join(folder, INSTANCE), "utf8");
    const changed = change(text);
    assert.notEqual(changed, text);
    await writeFile(join(folder, INSTANCE), changed);
    const buf = join(ROOT, "node_modules/@bufbuild/buf/bin/buf");
    const args = [buf, "breaking", "--against", "test/fixtures/proto-baseline.binpb"];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: folder, encoding: "utf8" });
    return status === 0 ? "ok" : stdout + stderr;
  }

  it("may not give a field another number, nor drop one without reserving it", async () => {
    assert.match(await compare((text) => text.replace("string model = 3;", "string model = 99;")), /"model".*"Info"/);
    assert.match(await compare((text) => text.replace("  string engine = 8;\n", "")), /"engine".*deleted/);
  });

  it("may gain fields", async () => {
    const gained = "string model = 3;\n  // New.\n  string newcomer = 1000;";
    assert.equal(await compare((text) => text.replace("string model = 3;", gained)), "ok");
  });
});
