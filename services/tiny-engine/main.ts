// `tandem engine`: one engine, or many sims in one process, until a signal.
import { loadConfig } from "../common/config.ts";
import { anySignal, onceAborted, stopWithParent, untilSignal } from "../common/lifecycle.ts";
import { StartError } from "../common/run-main.ts";
import { shippedModel } from "../common/package-file.ts";
import { embeddedOptions, engineConfig, isEmbedded, simOptions, type EngineConfig } from "./config.ts";
import type { RunningEngine } from "./serve-engine.ts";

/** Resolves when the engines have stopped. @throws ConfigError */
export async function runEngine(argv: readonly string[]): Promise<void> {
  const config = loadConfig(engineConfig, { argv, env: process.env });
  const embedded = isEmbedded(config);
  const stop = anySignal(untilSignal("SIGINT", "SIGTERM"), stopWithParent());
  const engines = await (embedded ? startEmbedded(config) : startSims(config));
  for (const engine of engines) {
    const kv = engine.kvAddress === null ? "" : `, KV by ${config.connector} at ${engine.kvAddress}`;
    const role = config.role === "none" ? "" : ` ${config.role}`;
    process.stdout.write(
      `${embedded ? "embedded" : "simulated"}${role} engine ready on ${engine.url}: ${engine.state().model}${kv}\n`,
    );
  }
  await onceAborted(stop);
  // As in vLLM without --shutdown-timeout: running requests are aborted.
  await Promise.all(engines.map((engine) => engine[Symbol.asyncDispose]()));
}

// Only the wanted kind is loaded: the other's code would cost memory and time.

async function startSims(config: EngineConfig): Promise<RunningEngine[]> {
  const { startSimEngines } = await import("./server.ts");
  let alive = config.engines;
  return startSimEngines(
    {
      ...simOptions(config),
      onDeath() {
        alive--;
        // A dead engine ends its process, unless other engines live in it.
        if (alive === 0) process.exit(1);
      },
    },
    config.engines,
  );
}

async function startEmbedded(config: EngineConfig): Promise<RunningEngine[]> {
  const file = config.model.file ?? shippedModel();
  if (file === undefined)
    throw new StartError("This build ships no model. Give one with --model FILE.gguf, or simulate one with --sim.");
  const { GgufError } = await import("./llama/gguf.ts");
  const { startLlamaEngine } = await import("./llama/start-llama-engine.ts");
  try {
    return [await startLlamaEngine({ ...embeddedOptions(config, file), onDeath: () => process.exit(1) })];
  } catch (error) {
    if (error instanceof GgufError) throw new StartError(`${file} can't be run: ${error.message}.`);
    throw error instanceof RangeError ? new StartError(error.message) : error;
  }
}
