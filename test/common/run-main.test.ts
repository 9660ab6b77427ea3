import assert from "node:assert/strict";
import { moduleUrl, runScript } from "../support/script.ts";

const imports = `
  import { ConfigError, PrintAndExit, runMain, StartError } from ${JSON.stringify(moduleUrl("services/common/config.ts"))};
  import { ServiceError } from ${JSON.stringify(moduleUrl("services/common/errors.ts"))};`;

const ending = async (body: string) => {
  await using script = runScript(`${imports} runMain(async () => { ${body} });`);
  return await script.ended;
};

describe("the top of a process", () => {
  it("ends with 0 when main is done", async () => {
    const { code, stdout } = await ending(`console.log("done");`);
    assert.deepEqual([code, stdout], [0, "done\n"]);
  });

  it("prints help on standard output", async () => {
    const { code, stdout, stderr } = await ending(`throw new PrintAndExit("usage\\n");`);
    assert.deepEqual([code, stdout, stderr.includes("usage")], [0, "usage\n", false]);
  });

  it("prints the fault of a configuration without a stack, and ends with 2", async () => {
    const { code, stderr } = await ending(`throw new ConfigError("no flag --x");`);
    assert.deepEqual([code, stderr.includes("no flag --x"), stderr.includes(" at ")], [2, true, false]);
  });

  it("prints a failure that the user can mend without a stack, and ends with 1", async () => {
    for (const thrown of [
      `new StartError("no such model")`,
      `new ServiceError("instance_unavailable", "no such model")`,
      `new Error("no such model", { cause: { code: "EADDRINUSE" } })`,
    ]) {
      const { code, stderr } = await ending(`throw ${thrown};`);
      assert.deepEqual([code, stderr.includes("no such model"), stderr.includes(" at ")], [1, true, false], thrown);
    }
  });

  it("prints the stacks of a bug and of its cause", async () => {
    const { code, stderr } = await ending(`throw new TypeError("oops", { cause: new Error("deeper") });`);
    assert.equal(code, 1);
    assert.match(stderr, /TypeError: oops\n\s+at [^]*caused by: Error: deeper\n\s+at /);
  });
});
