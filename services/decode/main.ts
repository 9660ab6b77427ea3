// A decode instance: one engine that writes answers, behind DecodeService.
import { loadConfig } from "../common/config.ts";
import { startInstance, type RunningInstance, type StartOptions } from "../instance/instance.ts";
import { runInstance } from "../instance/run.ts";
import { stateDirOf } from "../common/state-dir.ts";
import { decodeConfig, type DecodeConfig } from "./config.ts";
import { debtFile } from "./debt-record.ts";
import { decodeService } from "./service.ts";

/** Resolves when the engine works and legs are taken. */
export function startDecode(config: DecodeConfig, o: StartOptions): Promise<RunningInstance> {
  const recordFile = debtFile(stateDirOf(config.process), config.engine.attach);
  return startInstance("decode", config, (parts) => decodeService(parts, config, recordFile), o);
}

/** The process. @param argv Without node, script and command. */
export function runDecode(argv: readonly string[]): Promise<void> {
  return runInstance("decode", loadConfig(decodeConfig, { argv, env: process.env }), startDecode);
}
