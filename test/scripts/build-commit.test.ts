import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { moduleUrl } from "../support/script.ts";

const { sourceCommit, writeCommit } = await import(moduleUrl("scripts/build-commit.mjs"));

describe("the commit of a build", () => {
  let root = "";
  beforeEach(async () => {
    root = await mkdtemp(join(tmpdir(), "tandem-commit-"));
  });
  afterEach(() => rm(root, { recursive: true }));

  const git = (...args: string[]): string =>
    execFileSync("git", ["-c", "user.name=test", "-c", "user.email=test@example.com", ...args], {
      cwd: root,
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    }).trim();

  it("is the clone's own, follows it from commit to commit, and says when files differ", async () => {
    git("init", "--quiet");
    await writeFile(join(root, "a"), "1");
    git("add", "a");
    git("commit", "--quiet", "-m", "first");
    const head = (): string => git("rev-parse", "HEAD").slice(0, 12);
    const first = head();
    assert.equal(sourceCommit(root, {}), first);
    await writeFile(join(root, "a"), "2");
    assert.equal(sourceCommit(root, {}), `${first}-dirty`);
    git("commit", "--quiet", "-a", "-m", "second");
    git("tag", "v1");
    assert.notEqual(head(), first);
    assert.equal(sourceCommit(root, {}), head(), "a tag doesn't take the place of the commit");
    // A copy inside it, such as an unpacked archive, is not the repository's.
    await mkdir(join(root, "archive"));
    assert.equal(sourceCommit(join(root, "archive"), {}), "unknown");
  });

  it("is given by SOURCE_COMMIT where there is no git, and unknown otherwise", () => {
    const full = "0123456789abcdef0123456789abcdef01234567";
    assert.equal(sourceCommit(root, { SOURCE_COMMIT: full }), "0123456789ab");
    assert.equal(sourceCommit(root, { SOURCE_COMMIT: "" }), "unknown");
    assert.equal(sourceCommit(root, {}), "unknown");
  });

  it("is written into the build, and only when it changed", async () => {
    const file = join(root, "build.json");
    writeCommit(root, "aaaaaaaaaaaa");
    const written = await stat(file);
    writeCommit(root, "aaaaaaaaaaaa");
    assert.equal((await stat(file)).ino, written.ino);
    writeCommit(root, "bbbbbbbbbbbb");
    assert.deepEqual(JSON.parse(await readFile(file, "utf8")), { commit: "bbbbbbbbbbbb" });
    assert.deepEqual(await readdir(root), ["build.json"]);
  });
});
