// A decode instance: one engine that writes answers, behind DecodeService.
import { loadConfig } from "../common/config.ts";
import { restAsFlags } from "../common/words-after-dashes.ts";
import { startInstance, type Instance, type StartOptions } from "../instance/instance.ts";
import { runInstance } from "../instance/run.ts";
import { decodeConfig, type DecodeConfig } from "./config.ts";
import { decodeService } from "./service.ts";

/** Resolves when the engine works and legs are taken. */
export function startDecode(config: DecodeConfig, o: StartOptions = {}): Promise<Instance> {
  const limits = { holdMs: config["reservation.hold_ms"], settleTimeoutMs: config["settle.timeout_ms"] };
  return startInstance("decode", config, (parts) => decodeService(parts, limits), o);
}

/** The process. @param argv Without node, script and command. */
export function runDecode(argv: readonly string[]): Promise<void> {
  const config = loadConfig(decodeConfig, { argv: restAsFlags(argv, "engine.flag"), env: process.env });
  return runInstance("decode", config, (o) => startDecode(config, o));
}
