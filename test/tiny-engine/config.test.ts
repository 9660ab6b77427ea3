import assert from "node:assert/strict";
import { ConfigError, loadConfig } from "../../services/common/config.ts";
import { engineConfig, simOptions } from "../../services/tiny-engine/config.ts";
import { startSimEngines, type RunningEngine } from "../../services/tiny-engine/server.ts";
import { freePort } from "../support/waits.ts";
import { complete } from "./client.ts";

const options = (...argv: string[]): ReturnType<typeof simOptions> =>
  simOptions(loadConfig(engineConfig, { argv, env: {} }));

describe("tandem engine's settings", () => {
  it("have the defaults of an aggregated engine", () => {
    const { port, role, connector, kvSlots } = options();
    assert.deepEqual([port, role, connector, kvSlots], [8000, "none", "none", 64]);
  });

  it("read faults, and refuse one that does not exist", () => {
    assert.deepEqual(options("--fault", "slow:extra_ms=5", "--fault", "hang").faults, [
      { kind: "slow", extraMs: 5 },
      { kind: "hang" },
    ]);
    assert.throws(() => options("--fault", "slew"), ConfigError);
  });

  it("refuse to listen where other machines reach, unless told to", () => {
    for (const flags of [
      ["--listen", "0.0.0.0:8000"],
      ["--kv.listen", "10.0.0.1:1"],
    ]) {
      assert.throws(() => options(...flags), /--expose/);
      assert.equal(options(...flags, "--expose").role, "none");
    }
  });

  it("refuse a connector without a role and a role without a connector", () => {
    assert.throws(() => options("--connector", "nixl"), /--role/);
    assert.throws(() => options("--role", "decode"), /--connector/);
  });
});

/** Neighbours of a free port may be taken by anything else on the machine; then other ones are tried. */
async function startOnNeighbours(count: number): Promise<{ port: number; engines: RunningEngine[] }> {
  for (let left = 20; ; left--) {
    const port = await freePort();
    try {
      return { port, engines: await startSimEngines({ port, modelName: "tiny", decodeMsPerToken: 0 }, count) };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EADDRINUSE" || left === 0) throw error;
    }
  }
}

describe("many engines in one process", () => {
  it("listen on consecutive ports, each with its own state", async () => {
    const { port, engines } = await startOnNeighbours(3);
    try {
      assert.deepEqual(
        engines.map(({ url }) => Number(new URL(url).port) - port),
        [0, 1, 2],
      );
      await complete(engines[1]!, "a", { max_tokens: 3, ignore_eos: true });
      assert.deepEqual(
        engines.map((engine) => engine.state().generation_tokens),
        [0, 3, 0],
      );
    } finally {
      await Promise.all(engines.map((engine) => engine[Symbol.asyncDispose]()));
    }
  });

  it("leave nothing behind when one cannot start", async () => {
    const { port, engines } = await startOnNeighbours(1);
    const before = await freePort();
    // The first of the two gets its KV port, the second one's is taken.
    const kvListen = `127.0.0.1:${port - 1}`;
    await assert.rejects(startSimEngines({ port: before, connector: "p2p-zmq", role: "decode", kvListen }, 2));
    await engines[0]![Symbol.asyncDispose]();
    const again = await startSimEngines({ port: before }, 1);
    await again[0]![Symbol.asyncDispose]();
  });
});
