import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { moduleUrl } from "../support/script.ts";

const { swallowedFlags } = await import(moduleUrl("scripts/npm-flags.mjs"));
const { lockFaults } = await import(moduleUrl("scripts/lock-check.mjs"));
const { selectTests, closingLine } = await import(moduleUrl("scripts/tests.mjs"));
const root = fileURLToPath(moduleUrl("."));

describe("npm start with flags that npm took for itself", () => {
  it("says how to write them", () => {
    assert.match(swallowedFlags({ npm_config_port: "9" }, []), /npm start -- --port 9\n/);
    assert.match(swallowedFlags({ npm_config_port: "true" }, ["9"]), /npm start -- --port 9\n/);
    assert.match(swallowedFlags({ npm_config_grpc_port: "5", npm_config_model: "m" }, []), /--grpc-port 5 --model m\n/);
    assert.match(
      swallowedFlags({ npm_config_prefill: "true", npm_config_decode: "true" }, ["2", "3"]),
      /--prefill \.\.\. --decode \.\.\.\n/,
    );
    assert.match(swallowedFlags({ npm_config_engine_strict: "true" }, ["sim"]), /npm start -- --engine sim\n/);
  });

  it("leaves npm's own settings and proper flags alone", () => {
    assert.equal(
      swallowedFlags({ npm_config_cache: "/x", npm_config_engine_strict: "true" }, ["--port", "9"]),
      undefined,
    );
    assert.equal(swallowedFlags({ npm_config_engine_strict: "true" }, []), undefined);
  });

  it("ends with 2 before anything is installed", () => {
    const { status, stderr } = spawnSync(process.execPath, ["scripts/run.mjs", "start"], {
      cwd: root,
      env: { ...process.env, npm_config_port: "9" },
      encoding: "utf8",
    });
    assert.deepEqual([status, /npm start -- --port 9/.test(stderr)], [2, true]);
  });

  it("lists the commands for an unknown one", () => {
    const { status, stderr } = spawnSync(process.execPath, ["scripts/run.mjs", "constructor"], {
      cwd: root,
      encoding: "utf8",
    });
    assert.deepEqual([status, /start\|test\|gen/.test(stderr)], [2, true]);
  });
});

describe("the check of package-lock.json", () => {
  it("finds no fault in ours", () => {
    assert.deepEqual(lockFaults(JSON.parse(readFileSync(`${root}/package-lock.json`, "utf8"))), []);
  });

  it("finds entries that can't be installed, and platforms that were forgotten", () => {
    const good = { version: "1.0.0", integrity: "sha512-x" };
    const packages = {
      "": { optionalDependencies: { z: "1" } },
      "node_modules/a": { ...good, optionalDependencies: { "@a/linux": "1", "@a/darwin": "1", nested: "1" } },
      "node_modules/@a/linux": good,
      "node_modules/a/node_modules/nested": good,
      "node_modules/b": { version: "1.0.0" },
      "node_modules/c": { ...good, resolved: "https://mirror.example/c.tgz" },
    };
    assert.deepEqual(lockFaults({ name: "x", packages }), [
      "x needs z on some platform, but the lock has no entry for it",
      "a needs @a/darwin on some platform, but the lock has no entry for it",
      "node_modules/b has no integrity",
      "node_modules/c names its registry host; .npmrc's omit-lockfile-registry-resolved makes npm leave the host out",
    ]);
  });
});

describe("npm test", () => {
  it("runs every test but those that need more than a laptop, and names these", () => {
    const { files, left, flags } = selectTests(root, ["--grep", "x y", "--bail"], {});
    assert.ok(files.includes("test/scripts/commands.test.ts"));
    assert.ok(!files.some((file: string) => file.startsWith("test/live/")));
    assert.ok(left.every((file: string) => file.startsWith("test/live/")));
    assert.deepEqual(flags, ["--grep", "x y", "--bail"]);
  });

  it("runs all of them for CI and --all, and named ones in any case", () => {
    assert.deepEqual(selectTests(root, [], { CI: "true" }).left, []);
    assert.deepEqual(selectTests(root, ["--all"], { CI: "false" }).left, []);
    assert.deepEqual(selectTests(root, ["test/scripts/"], {}).files, [
      "test/scripts/build-commit.test.ts",
      "test/scripts/commands.test.ts",
      "test/scripts/contracts.test.ts",
      "test/scripts/package.test.ts",
      "test/scripts/set-up.test.ts",
    ]);
    assert.deepEqual(selectTests(root, ["test/tidy.test.ts"], {}).files, ["test/tidy.test.ts"]);
    assert.throws(() => selectTests(root, ["test/nowhere"], {}), /test\/nowhere does not exist/);
  });

  it("ends with the sum, and counts a run that broke as a failure", () => {
    assert.deepEqual(closingLine({ passed: 3, failed: 0, skipped: 0 }, 0), {
      line: "3 passed, 0 failed",
      failed: false,
    });
    assert.deepEqual(closingLine({ passed: 3, failed: 1, skipped: 2 }, 1), {
      line: "3 passed, 1 failed, 2 skipped",
      failed: true,
    });
    assert.deepEqual(closingLine(undefined, 1), { line: "0 passed, 1 failed", failed: true });
    assert.deepEqual(closingLine({ passed: 3, failed: 0, skipped: 0 }, 7), {
      line: "3 passed, 1 failed",
      failed: true,
    });
  });
});
