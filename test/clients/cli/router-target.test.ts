import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { explained, findRouter, routerSettings, type RouterTarget } from "../../../clients/cli/router-target.ts";
import { runFilePath, writeRun } from "../../../clients/cli/run-file.ts";
import { TandemError } from "../../../clients/client/errors.ts";
import { ConfigError, defineConfig, loadConfig } from "../../../services/common/config.ts";
import { identityOf } from "../../../services/common/process-identity.ts";

describe("the router that a command is about", () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "tandem-runs-"));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  const find = (...argv: string[]): RouterTarget =>
    findRouter(loadConfig(defineConfig("status", routerSettings), { argv: ["--state.dir", folder, ...argv], env: {} }));
  const runs = (name: string, port: number): void =>
    writeRun(runFilePath(folder, port), {
      name,
      pid: process.pid,
      pidStart: identityOf(process.pid)!.startedAt,
      startedUnixMs: port,
      restUrl: `http://127.0.0.1:${port}`,
      grpcAddress: "",
      token: `token-of-${name}`,
      logDir: "",
      processes: [],
    });

  it("is the one at the default address if no deployment runs here", () => {
    const tls = { cert: "", key: "", ca: "", peerIds: [] };
    const unknown = { grpcAddress: undefined, tls, token: "", run: undefined, runCount: 0 };
    assert.deepEqual(find(), { url: "http://127.0.0.1:3000", ...unknown });
    assert.throws(() => find("--name", "blue"), /This user has no deployment named blue running here\. Start it/);
  });

  it("is that of the only deployment, with its token", () => {
    runs("blue", 3_900);
    const { url, token } = find();
    assert.deepEqual([url, token], ["http://127.0.0.1:3900", "token-of-blue"]);
    assert.equal(find("--token", "mine").token, "mine");
  });

  it("must be named if several run", () => {
    runs("blue", 3_900);
    runs("green", 3_950);
    assert.throws(
      () => find(),
      (error: Error) => {
        assert.ok(error instanceof ConfigError);
        assert.match(
          error.message,
          /green at http:\/\/127\.0\.0\.1:3950, blue at http:\/\/127\.0\.0\.1:3900\. .*--name/,
        );
        return true;
      },
    );
    assert.equal(find("--name", "blue").token, "token-of-blue");
    assert.equal(find("--router", "127.0.0.1:3950/").token, "token-of-green");
    assert.equal(find("--router", "http://elsewhere:3000").token, "");
    assert.throws(() => find("--name", "red"), /no deployment named red .* These run: green at/);
  });

  it("refuses a secret: the error names the secret, and whether one was given", () => {
    const target = { ...find(), url: "http://r" };
    const words = (error: TandemError, token: string, apiKey: string): string =>
      (explained(error, { ...target, token }, apiKey) as Error).message;
    const ofRest = new TandemError("unauthenticated", "no", { status: 401 });
    const ofService = new TandemError("unauthenticated", "no", { code: "unauthenticated" });
    assert.match(words(ofRest, "", ""), /requires its API key: pass it with --api-key/);
    assert.match(words(ofRest, "", "sk"), /rejects this API key/);
    assert.match(words(ofService, "", ""), /requires its join token: pass it with --token or TANDEM_TOKEN/);
    assert.match(words(ofService, "t", ""), /rejects this join token/);
  });
});
