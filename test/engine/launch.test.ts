// The command line of the sim and the embedded engine, read back by the engine's own parser.
import assert from "node:assert/strict";
import { ConfigError, loadConfig } from "../../services/common/config.ts";
import type { LaunchOptions } from "../../services/engine/engine.ts";
import { launcherOf } from "../../services/engine/launch.ts";
import { engineConfig, type EngineConfig } from "../../services/tiny-engine/config.ts";

const VLLM = { command: "", servedName: "", gpus: "", poolGib: 4, hfToken: "" };
const KINDS = ["sim", "embedded"] as const;

async function argsOf(
  kind: (typeof KINDS)[number],
  given: { kvHost?: string; model?: string; servedName?: string; flags?: readonly string[] } = {},
): Promise<readonly string[]> {
  const { kvHost = "127.0.0.1", model = "", servedName = "", flags = [] } = given;
  const options: LaunchOptions = { role: "decode", connector: "p2p-zmq", model, slots: 7, flags };
  const { args } = await launcherOf(kind, options, { ...VLLM, servedName })({
    socketPath: "/run/engine.sock",
    kvHost,
    kvPort: 4_002,
  });
  return args.slice(args.indexOf("engine") + 1);
}

const read = (argv: readonly string[]): EngineConfig => loadConfig(engineConfig, { argv, env: {} });

describe("the launcher of the engines that ship", () => {
  for (const kind of KINDS) {
    it(`exposes the KV side channel of ${kind} under an address that others can dial, and only there`, async () => {
      const exposed = read(await argsOf(kind, { kvHost: "10.0.0.7" }));
      assert.deepEqual([exposed.kv.kvListen, exposed.expose], ["10.0.0.7:4002", true]);
      assert.equal(exposed.socketPath, "/run/engine.sock", "its API stays on its socket");
      assert.equal(read(await argsOf(kind)).expose, false);
    });

    it(`passes other flags on to ${kind}`, async () => {
      const config = read(await argsOf(kind, { flags: ["--kv.lease_ms", "5", "--fault=refuse"] }));
      assert.deepEqual([config.kv.kvLeaseMs, config.fault], [5, ["refuse"]]);
    });

    it(`gives all of ${kind} in a deployment one KV key, made from the token, where no other user can read it`, async () => {
      const launched = async (token?: string) => {
        const o = { role: "decode", connector: "p2p-zmq", model: "", slots: 7, flags: [] } as const;
        const all = token === undefined ? o : { ...o, token };
        return launcherOf(kind, all, VLLM)({ socketPath: "/s", kvHost: "127.0.0.1", kvPort: 4_002 });
      };
      const { args, env } = await launched("TOKEN");
      const key = env!["TANDEM_KV_KEY"]!;
      assert.equal((await launched("TOKEN")).env!["TANDEM_KV_KEY"], key);
      assert.notEqual((await launched("OTHER")).env!["TANDEM_KV_KEY"], key);
      assert.equal((await launched()).env!["TANDEM_KV_KEY"], "");
      assert.ok(key.length === 64 && !args.join(" ").includes(key) && !JSON.stringify([args, env]).includes("TOKEN"));
      assert.equal(loadConfig(engineConfig, { argv: args.slice(args.indexOf("engine") + 1), env: env! }).kv.kvKey, key);
    });

    it(`refuses a flag that it gives ${kind} itself, and says what decides it`, async () => {
      const named = { model: "/m.gguf", servedName: "m", kvHost: "10.0.0.7" };
      const own = [...(await argsOf(kind)), ...(await argsOf(kind, named))].map((word) => word.split("=", 1)[0]!);
      assert.ok(own.includes("--expose"));
      for (const name of [...own, "--no-expose", "--port", "--listen", "--kv-listen"])
        for (const flags of [[name, "x"], [`${name}=x`]])
          await assert.rejects(
            argsOf(kind, { flags }),
            (error) => error instanceof ConfigError && /^The engine's --\S+ can't be given: .+\.$/.test(error.message),
            flags.join(" "),
          );
      await assert.rejects(argsOf(kind, { flags: ["--expose"] }), {
        message: "The engine's --expose can't be given: Tandem adds it where the host of --kv.listen is not loopback.",
      });
    });
  }
});
