// `tandem engine`: one engine, or many in one process, until a signal.
import { ConfigError, loadConfig } from "../common/config.ts";
import { anySignal, onceAborted, stopWithParent, untilSignal } from "../common/lifecycle.ts";
import { engineConfig, simOptions } from "./config.ts";
import { startSimEngines } from "./server.ts";

/** Resolves when the engines have stopped. @throws ConfigError */
export async function runEngine(argv: readonly string[]): Promise<void> {
  const config = loadConfig(engineConfig, { argv, env: process.env });
  if (!config.sim) throw new ConfigError("--no-sim: the embedded engine is not there yet. Leave it out to run the simulation.");
  const stop = anySignal(untilSignal("SIGINT", "SIGTERM"), stopWithParent());
  let alive = config.instances;
  const engines = await startSimEngines({
    ...simOptions(config),
    onDeath() {
      alive--;
      // What a dead engine leaves of its process is nothing, unless others live in it.
      if (alive === 0) process.exit(1);
    },
  }, config.instances);
  for (const engine of engines) {
    const kv = engine.kvAddress === null ? "" : `, KV by ${config.connector} at ${engine.kvAddress}`;
    const role = config.role === "none" ? "" : ` ${config.role}`;
    process.stdout.write(`simulated${role} engine ready on ${engine.url}: ${config["model.name"]}${kv}\n`);
  }
  await onceAborted(stop);
  // As vLLM without --shutdown-timeout: whatever runs is aborted.
  await Promise.all(engines.map((engine) => engine[Symbol.asyncDispose]()));
}
