// Starts sim engines: one HTTP server, one engine core and one KV connector each, several in one process
// if asked. Tests and benchmarks start here; the command line starts at main.ts.
import { joinAddress, splitAddress } from "../common/address.ts";
import { serveEngine, type RunningEngine } from "./serve-engine.ts";
import { SimEngine, type SimEngineOptions } from "./sim/sim-engine.ts";

export type { RunningEngine, SimEngineOptions };

/** @throws Error if an address cannot be bound. */
export function startSimEngine(options: SimEngineOptions = {}): Promise<RunningEngine> {
  return serveEngine(options, (core) => new SimEngine(options, core));
}

/** `count` engines of the same kind, on consecutive ports from the given one, or on any free ports. */
export async function startSimEngines(options: SimEngineOptions, count: number): Promise<RunningEngine[]> {
  const engines: RunningEngine[] = [];
  const kv = splitAddress(options.kvListen ?? "127.0.0.1:0");
  try {
    for (let index = 0; index < count; index++) {
      const port = options.port ? options.port + index : 0;
      const kvListen = joinAddress(kv.host, kv.port === 0 ? 0 : kv.port + index);
      engines.push(await startSimEngine({ ...options, port, kvListen }));
    }
  } catch (error) {
    await Promise.all(engines.map((engine) => engine[Symbol.asyncDispose]()));
    throw error;
  }
  return engines;
}
