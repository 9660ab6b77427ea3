// A prefill instance: one engine that reads prompts, behind PrefillService.
import { loadConfig } from "../common/config.ts";
import { restAsFlags } from "../common/words-after-dashes.ts";
import { startInstance, type Instance, type StartOptions } from "../instance/instance.ts";
import { runInstance } from "../instance/run.ts";
import { prefillConfig, type PrefillConfig } from "./config.ts";
import { prefillService } from "./service.ts";

/** Resolves when the engine works and legs are taken. */
export function startPrefill(config: PrefillConfig, o: StartOptions = {}): Promise<Instance> {
  const limits = { keepMs: config["outcome.keep_ms"], limit: config["outcome.limit"] };
  return startInstance("prefill", config, (parts) => prefillService(parts, limits), o);
}

/** The process. @param argv Without node, script and command. */
export function runPrefill(argv: readonly string[]): Promise<void> {
  const config = loadConfig(prefillConfig, { argv: restAsFlags(argv, "engine.flag"), env: process.env });
  return runInstance("prefill", config, (o) => startPrefill(config, o));
}
