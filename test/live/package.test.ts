// The npm package as a user gets it: packed from a fresh copy of this clone, installed into an empty folder without
// install scripts, and run there on each Node that Tandem promises.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { cp, mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { moduleUrl } from "../support/script.ts";
import { skip } from "../support/skip.ts";
import { eventually } from "../support/waits.ts";
import { startTandem, type Tandem } from "../support/tandem.ts";
import { MAY_FETCH, node } from "../support/tools.ts";

const { sourceCommit } = await import(moduleUrl("scripts/build-commit.mjs"));
const exec = promisify(execFile);
const ROOT = fileURLToPath(new URL("../../", import.meta.url));
/** What git ignores: a fresh clone doesn't have it. */
const MADE = new Set(["node_modules", "gen", "dist", "dist.new", "dist.old", ".tandem", "coverage"]);

/** What a user might write. The line that must not compile proves that the types are there. */
const SCRIPT = `
import { grpcClient, tandemClient } from "@tandem-llm/tandem";
import { Role } from "@tandem-llm/tandem/contracts/instance/v1/instance";

declare const process: { readonly argv: readonly string[] };
const [url, grpcAddress, token] = process.argv.slice(2) as [string, string, string];
const { instances } = await tandemClient({ url, token }).router.listInstances({});
const roles = instances.map(({ info }) => Role[info?.role ?? Role.UNSPECIFIED]).sort();
const { tandemCommit } = await grpcClient(grpcAddress, token).router.getConfig({});
// @ts-expect-error
const wrong: number = tandemCommit;
console.log(JSON.stringify({ roles, tandemCommit, wrong }));
`;

describe("the npm package", function () {
  this.timeout(10 * 60_000);
  let temp = "";
  /** The folder that it is installed into. */
  let folder = "";
  let cli = "";

  before(async function () {
    if (!MAY_FETCH) skip(this, "installs packages: CI=true or `npm test -- --all` runs it");
    temp = await mkdtemp(join(tmpdir(), "tandem-package-"));
    const clone = join(temp, "clone");
    await cp(ROOT, clone, { recursive: true, filter: (path) => !MADE.has(relative(ROOT, path)) });
    // Installs, generates and builds by itself, as `prepack` says.
    await exec("npm", ["pack", "--silent", "--pack-destination", temp], { cwd: clone });
    const [tarball] = (await readdir(temp)).filter((name) => name.endsWith(".tgz"));
    folder = join(temp, "empty");
    await mkdir(folder);
    await exec("npm", ["install", "--prefix", folder, "--ignore-scripts", join(temp, tarball!)], { cwd: folder });
    cli = join(folder, "node_modules/.bin/tandem");
  });
  after(() => rm(temp, { recursive: true, force: true }));

  it("gives types to a script that uses the client and the contracts", async () => {
    await writeFile(join(folder, "script.mts"), SCRIPT);
    const options = { module: "nodenext", target: "es2023", lib: ["es2023", "dom"], types: [], strict: true };
    const config = { compilerOptions: { ...options, skipLibCheck: false }, files: ["script.mts"] };
    await writeFile(join(folder, "tsconfig.json"), JSON.stringify(config));
    const tsc = join(ROOT, "node_modules/typescript/bin/tsc");
    await exec(process.execPath, [tsc, "-p", "tsconfig.json"], { cwd: folder }).catch((error: { stdout: string }) =>
      assert.fail(error.stdout),
    );
  });

  for (const major of [20, 24] as const) {
    describe(`on Node ${major}`, () => {
      let program = "";
      let tandem: Tandem;
      before(async function () {
        const found = await node(major);
        if ("missing" in found) skip(this, found.missing);
        program = found.path;
        const env = { XDG_STATE_HOME: join(temp, `state-${major}`) };
        tandem = await startTandem(["--engine", "embedded"], env, { node: program, cli, cwd: folder });
      });
      after(() => tandem?.[Symbol.asyncDispose]());

      it("is a command that says its version and commit", async () => {
        const { stdout } = await exec(cli, ["--version"], { cwd: folder, env: { PATH: dirname(program) } });
        assert.match(stdout, /^\d+\.\d+\.\d+ \(commit \S+\)\n$/);
        assert.ok(stdout.includes(`(commit ${sourceCommit(ROOT)})`), stdout);
      });

      it("serves a chat with the model that it ships", async () => {
        const answer = await fetch(`${tandem.url}/v1/chat/completions`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({
            model: "tandem-tiny",
            temperature: 0,
            messages: [{ role: "user", content: "What is Tandem?" }],
          }),
        });
        const body = (await answer.json()) as any;
        assert.equal(answer.status, 200, JSON.stringify(body));
        assert.match(body.choices[0].message.content, /^Tandem serves large language models/);
        assert.equal(answer.headers.get("x-tandem-degraded"), null);
      });

      it("names itself so that npx can't take another package for it", async () => {
        const line = /^ {2}npx @tandem-llm\/tandem chat --name port-\d+$/m;
        await eventually("the banner is written", () => line.test(tandem.output()));
        assert.doesNotMatch(tandem.output(), /npx tandem/);
      });

      it("gives scripts its client and contracts", async () => {
        const words = ["script.mjs", tandem.url, tandem.grpcAddress, tandem.token];
        const { stdout } = await exec(program, words, { cwd: folder });
        const { roles, tandemCommit } = JSON.parse(stdout) as { roles: string[]; tandemCommit: string };
        assert.deepEqual(roles, ["DECODE", "PREFILL"]);
        assert.equal(tandemCommit, sourceCommit(ROOT));
      });
    });
  }
});
