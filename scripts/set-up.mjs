// Brings a clone to the point where a command can run: packages installed, code generated, dist built. Each step is
// skipped if its inputs have not changed. If all three are fresh, the check takes some tens of milliseconds.
import { chmodSync, copyFileSync, existsSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { sourceCommit, writeCommit } from "./build-commit.mjs";
import { isFresh, stampOf, writeStamp } from "./fingerprint.mjs";
import { ROOT, say, StepFailed } from "./process.mjs";

const GEN_STAMP = join(ROOT, "gen/.tandem-stamp");
const DIST_STAMP = join(ROOT, "dist/.tandem-stamp");
const INSTALL_STAMP = join(ROOT, "node_modules/.tandem-stamp");

const STEPS = {
  install: { isDone: () => isFresh(INSTALL_STAMP, installInputs()), make: install },
  gen: { isDone: () => isFresh(GEN_STAMP, genInputs()), make: generate },
  build: { isDone: () => isFresh(DIST_STAMP, buildInputs()), make: build },
};

/**
 * Makes everything up to and including `last`: "install", "gen" or "build".
 *
 * @param force A step to repeat even if it is fresh.
 */
export async function setUp(last, { force } = {}) {
  await bringUpTo(last, force);
  if (last === "build") writeCommit(join(ROOT, "dist"), sourceCommit(ROOT));
}

async function bringUpTo(last, force) {
  const names = Object.keys(STEPS);
  const wanted = names.slice(0, names.indexOf(last) + 1);
  if (force === undefined && wanted.every((name) => STEPS[name].isDone())) return;
  const { withLock } = await import("./set-up-lock.mjs");
  const work = async () => {
    // Checked again, because the previous holder of the lock may have done the step.
    for (const name of wanted) if (name === force || !STEPS[name].isDone()) await STEPS[name].make();
  };
  try {
    await withLock(join(ROOT, ".tandem/set-up.lock"), work, {
      onWait: (pid) => say(`another set-up is running (process ${pid}); waiting for it ...`),
    });
  } catch (error) {
    throw ["EACCES", "EPERM", "EROFS"].includes(error.code) ? new StepFailed(notWritable(wanted, error)) : error;
  }
}

function notWritable(wanted, { code, path }) {
  const stale = wanted.filter((name) => !STEPS[name].isDone()).join(" and ");
  return (
    `tandem: this checkout needs its ${stale} step, and ${path} can't be written (${code}). ` +
    "Run `npm run build` once as the owner of the checkout, or use a clone of your own."
  );
}

function installInputs() {
  const extra = `${process.versions.node.split(".")[0]} ${process.platform} ${process.arch}`;
  return { root: ROOT, paths: ["package-lock.json"], extra };
}

function genInputs() {
  const versions = ["@bufbuild/protoc-gen-es", "@bufbuild/buf"].map((name) => versionOf(name)).join(" ");
  return { root: ROOT, paths: ["proto", "buf.gen.yaml", "buf.yaml"], extra: versions };
}

function buildInputs() {
  const paths = ["services", "clients", "gen", "tsconfig.json", "tsconfig.build.json", "package.json"];
  return { root: ROOT, paths, extra: versionOf("typescript") };
}

function versionOf(name) {
  const file = join(ROOT, "node_modules", name, "package.json");
  return existsSync(file) ? JSON.parse(readFileSync(file, "utf8")).version : "none";
}

async function install() {
  const { isInstalled, npmCi } = await import("./install.mjs");
  const stamp = stampOf(installInputs());
  // Skipped if the packages were installed by hand, with `npm ci` or `npm install`.
  if (!isInstalled(ROOT)) await timed("installing packages (about 20 s) ...", npmCi);
  writeStamp(INSTALL_STAMP, stamp);
}

async function generate() {
  const { runQuietly, tool } = await import("./process.mjs");
  const buf = (...args) => runQuietly(`buf ${args[0]}`, process.execPath, [tool("@bufbuild/buf/bin/buf"), ...args]);
  const stamp = stampOf(genInputs());
  const descriptors = join(ROOT, ".tandem/descriptors.binpb");
  await timed("generating code from proto/ ...", async () => {
    // Descriptors with source comments, for reflection. Written elsewhere first, because `buf generate` empties gen/.
    await Promise.all([buf("generate"), buf("build", "-o", descriptors)]);
    renameSync(descriptors, join(ROOT, "gen/descriptors.binpb"));
  });
  writeStamp(GEN_STAMP, stamp);
}

/** Builds into a separate folder and swaps it in, so that a failed build leaves the last good one. */
async function build() {
  const { runQuietly, tool } = await import("./process.mjs");
  const [fresh, old, dist] = ["dist.new", "dist.old", "dist"].map((name) => join(ROOT, name));
  rmSync(fresh, { recursive: true, force: true });
  rmSync(old, { recursive: true, force: true });
  const stamp = stampOf(buildInputs());
  try {
    await timed("building ...", () =>
      runQuietly("the build", process.execPath, [
        tool("typescript/bin/tsc"),
        "-p",
        "tsconfig.build.json",
        "--outDir",
        fresh,
      ]),
    );
  } catch (error) {
    rmSync(fresh, { recursive: true, force: true });
    throw error;
  }
  // tsc copies nothing; this is read beside the code that runs it.
  const kernel = "services/tiny-engine/llama/kernel.wasm";
  copyFileSync(join(ROOT, kernel), join(fresh, kernel));
  // npm makes a program executable when it links it. `npx tandem` in a clone does that once, not after each build.
  chmodSync(join(fresh, "clients/cli/main.js"), 0o755);
  writeStamp(join(fresh, ".tandem-stamp"), stamp);
  if (existsSync(dist)) renameSync(dist, old);
  renameSync(fresh, dist);
  rmSync(old, { recursive: true, force: true });
}

async function timed(line, work) {
  say(line);
  const start = performance.now();
  await work();
  say(`done in ${((performance.now() - start) / 1000).toFixed(1)} s`);
}
