// A prefill instance: one engine that reads prompts, behind PrefillService.
import { loadConfig } from "../common/config.ts";
import { startInstance, type RunningInstance, type StartOptions } from "../instance/instance.ts";
import { runInstance } from "../instance/run.ts";
import { prefillConfig, type PrefillConfig } from "./config.ts";
import { prefillService } from "./service.ts";

/** Resolves when the engine works and legs are taken. */
export function startPrefill(config: PrefillConfig, o: StartOptions): Promise<RunningInstance> {
  return startInstance("prefill", config, (parts) => prefillService(parts, config.outcomes), o);
}

/** The process. @param argv Without node, script and command. */
export function runPrefill(argv: readonly string[]): Promise<void> {
  return runInstance("prefill", loadConfig(prefillConfig, { argv, env: process.env }), startPrefill);
}
