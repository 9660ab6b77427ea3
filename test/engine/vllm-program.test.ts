import assert from "node:assert/strict";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findVllm } from "../../services/engine/vllm-program.ts";

describe("finding vLLM", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "tandem-vllm-"));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  /** A program that prints `says`. */
  const program = (path: string, says: string): string => {
    const file = join(folder, path);
    mkdirSync(join(file, ".."), { recursive: true });
    writeFileSync(file, `#!/bin/sh\necho "${says}"\n`);
    chmodSync(file, 0o755);
    return file;
  };

  it("asks the Python that the script runs with, which is quick", async () => {
    const python = program("venv/bin/python3.11", "0.32.0+cpu");
    const vllm = join(folder, "venv/bin/vllm");
    writeFileSync(vllm, `#!${python}\nimport nothing\n`);
    chmodSync(vllm, 0o755);
    assert.deepEqual(await findVllm("", { VIRTUAL_ENV: join(folder, "venv"), PATH: "" }), {
      words: [vllm],
      version: "0.32.0+cpu",
    });
  });

  it("looks on the PATH, and asks a program of another kind for its version", async () => {
    const vllm = program("bin/vllm", "INFO starting\n0.23.0");
    assert.deepEqual(await findVllm("", { PATH: `${folder}/none:${folder}/bin` }), {
      words: [vllm],
      version: "0.23.0",
    });
  });

  it("takes a command of several words", async () => {
    const python = program("bin/python3", "0.23.0");
    assert.deepEqual(await findVllm("python3 -m vllm.entrypoints.cli.main", { PATH: join(folder, "bin") }), {
      words: [python, "-m", "vllm.entrypoints.cli.main"],
      version: "0.23.0",
    });
  });

  it("says what to do if there is no vLLM", async () => {
    await assert.rejects(findVllm("", { PATH: folder }), /pip install vllm.*--vllm\.command.*--attach/);
    await assert.rejects(findVllm("nope", { PATH: folder }), /no program nope/);
    await assert.rejects(findVllm(join(folder, "missing"), { PATH: "" }), /not a program/);
    await assert.rejects(findVllm(program("odd", "hello"), { PATH: "" }), /does not report/);
  });
});
