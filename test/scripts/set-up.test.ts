import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readFile, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { moduleUrl } from "../support/script.ts";
import { deferred, eventually } from "../support/waits.ts";

const { isFresh, stampOf, writeStamp } = await import(moduleUrl("scripts/fingerprint.mjs"));
const { withLock } = await import(moduleUrl("scripts/set-up-lock.mjs"));
const { isInstalled } = await import(moduleUrl("scripts/install.mjs"));

describe("the set-up of a clone", () => {
  let root = "";
  beforeEach(async () => {
    root = await mkdtemp(join(tmpdir(), "tandem-"));
  });
  afterEach(() => rm(root, { recursive: true }));

  const write = async (path: string, text: string): Promise<void> => {
    await mkdir(join(root, path, ".."), { recursive: true });
    await writeFile(join(root, path), text);
  };

  describe("repeats a step", () => {
    const inputs = (extra = "v1") => ({ root, paths: ["src", "one.json", "absent"], extra });
    const stamp = () => join(root, "out/.stamp");
    beforeEach(async () => {
      await write("src/a.ts", "a");
      await write("src/deep/b.ts", "b");
      await write("one.json", "{}");
      writeStamp(stamp(), stampOf(inputs()));
    });

    it("never when nothing changed", () => assert.equal(isFresh(stamp(), inputs()), true));

    it("when it has not run at all, or its stamp was cut", async () => {
      assert.equal(isFresh(join(root, "none"), inputs()), false);
      await writeFile(stamp(), '{"stat');
      assert.equal(isFresh(stamp(), inputs()), false);
    });

    it("when a file changed, came, went or moved", async () => {
      await write("src/deep/b.ts", "B");
      assert.equal(isFresh(stamp(), inputs()), false);
      await write("src/deep/b.ts", "b");
      assert.equal(isFresh(stamp(), inputs()), true);
      await write("src/c.ts", "");
      assert.equal(isFresh(stamp(), inputs()), false);
      await rm(join(root, "src/c.ts"));
      await rm(join(root, "one.json"));
      assert.equal(isFresh(stamp(), inputs()), false);
      await write("src/one.json", "{}");
      assert.equal(isFresh(stamp(), inputs()), false);
    });

    it("when the tool is another version", () => assert.equal(isFresh(stamp(), inputs("v2")), false));

    it("not for files that were only touched, and then remembers their new times", async () => {
      const before = await readFile(stamp(), "utf8");
      await utimes(join(root, "src/a.ts"), 1, 1);
      assert.equal(isFresh(stamp(), inputs()), true);
      assert.notEqual(await readFile(stamp(), "utf8"), before);
    });
  });

  describe("installs packages", () => {
    const native = { optional: true, os: [process.platform], cpu: [process.arch] };
    const lock = (packages: Record<string, object>) =>
      write("package-lock.json", JSON.stringify({ packages: { "": {}, ...packages } }));
    const record = (packages: Record<string, object>) =>
      write("node_modules/.package-lock.json", JSON.stringify({ packages }));

    it("not when npm installed the same ones by hand", async () => {
      await lock({
        "node_modules/a": { version: "1.0.0" },
        "node_modules/win": { version: "1.0.0", optional: true, os: ["plan9"] },
        "node_modules/musl": { version: "1.0.0", ...native, libc: ["musl"] },
      });
      assert.equal(isInstalled(root), false);
      await record({ "node_modules/a": { version: "1.0.0" } });
      assert.equal(isInstalled(root), false, "the record says so, but the folder is gone");
      await mkdir(join(root, "node_modules/a"));
      assert.equal(isInstalled(root), true);
    });

    it("when one is missing, has another version, or lacks this platform's binary", async () => {
      await mkdir(join(root, "node_modules/a"), { recursive: true });
      await record({ "node_modules/a": { version: "1.0.0" } });
      await lock({ "node_modules/a": { version: "1.0.1" } });
      assert.equal(isInstalled(root), false);
      await lock({ "node_modules/a": { version: "1.0.0" }, "node_modules/b": { version: "1.0.0", dev: true } });
      assert.equal(isInstalled(root), false);
      await lock({ "node_modules/a": { version: "1.0.0" }, "node_modules/native": { version: "1.0.0", ...native } });
      assert.equal(isInstalled(root), false);
    });
  });

  describe("runs once at a time", () => {
    const path = () => join(root, ".tandem/lock");

    it("the second waits for the first, and says for whom", async () => {
      const first = deferred();
      const order: string[] = [];
      const one = withLock(path(), async () => {
        order.push("first in");
        await first.promise;
        order.push("first out");
      });
      const waiting = deferred<number>();
      const two = withLock(path(), async () => order.push("second in"), { onWait: waiting.resolve, pollMs: 5 });
      assert.equal(await waiting.promise, process.pid);
      first.resolve();
      await Promise.all([one, two]);
      assert.deepEqual(order, ["first in", "first out", "second in"]);
    });

    it("frees the lock when the work fails", async () => {
      await assert.rejects(
        withLock(path(), () => Promise.reject(new Error("no network"))),
        /no network/,
      );
      assert.equal(await withLock(path(), async () => "again"), "again");
    });

    it("takes over from a process that died", async () => {
      const child = spawn(
        process.execPath,
        [
          "--input-type=module",
          "--eval",
          `import { withLock } from ${JSON.stringify(moduleUrl("scripts/set-up-lock.mjs"))};
          await withLock(${JSON.stringify(path())}, () => new Promise(() => setInterval(() => {}, 1000)));`,
        ],
        { stdio: "ignore" },
      );
      await eventually("the child holds the lock", () => readFile(path(), "utf8"));
      child.kill("SIGKILL");
      await once(child, "exit");
      // Several at once find the dead lock; still they run one after the other.
      let inside = 0;
      const results = await Promise.all(
        [1, 2, 3].map((id) =>
          withLock(
            path(),
            async () => {
              assert.equal(++inside, 1);
              await new Promise(setImmediate);
              inside--;
              return id;
            },
            { pollMs: 5 },
          ),
        ),
      );
      assert.deepEqual(results, [1, 2, 3]);
    });
  });
});
