// The command that starts each kind of engine.
import { fileURLToPath } from "node:url";
import { ConfigError } from "../common/config.ts";
import type { EngineKind } from "./engine.ts";
import type { GuardedCommand } from "./guardian.ts";

export interface LaunchOptions {
  readonly role: "prefill" | "decode";
  readonly connector: string;
  /** Empty: the engine's own default. */
  readonly model: string;
  /** Sequences that the engine must have room for. */
  readonly slots: number;
  /** Given to the engine as they are, after Tandem's own. */
  readonly flags: readonly string[];
}

/** Where every engine that Tandem starts serves HTTP: an engine has no access control, so only its wrapper may reach it. */
export const ENGINE_HOST = "127.0.0.1";

export interface LaunchPorts {
  /** On ENGINE_HOST. */
  readonly httpPort: number;
  /** Host of the KV side channel, which partners on other machines dial. */
  readonly kvHost: string;
  readonly kvPort: number;
}

/** @throws ConfigError for a kind that Tandem can't start yet. */
export function launcherOf(kind: EngineKind, o: LaunchOptions): (ports: LaunchPorts) => GuardedCommand {
  if (kind === "vllm") {
    throw new ConfigError("--engine vllm: Tandem can't start vLLM yet. Start it yourself and give its URL: --attach http://127.0.0.1:8000");
  }
  if (kind === "embedded") {
    throw new ConfigError("--engine embedded: the embedded engine is not there yet. Use --engine sim, or --attach URL for a running vLLM.");
  }
  return (ports) => ({
    command: process.execPath,
    args: [
      ...process.execArgv.filter((arg) => !arg.startsWith("--inspect")),
      cliMain(),
      "engine",
      "--sim",
      `--listen=${ENGINE_HOST}:${ports.httpPort}`,
      `--kv.listen=${ports.kvHost}:${ports.kvPort}`,
      // Whoever set kv.host meant partners on other machines to reach it.
      ...(ports.kvHost === ENGINE_HOST ? [] : ["--expose"]),
      `--role=${o.role}`,
      `--connector=${o.connector}`,
      `--kv.slots=${o.slots}`,
      ...(o.model === "" ? [] : [`--model.name=${o.model}`]),
      ...o.flags,
    ],
  });
}

// `tandem engine`, the same build as this file: main.ts beside the sources, main.js in dist.
function cliMain(): string {
  const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
  return fileURLToPath(new URL(`../../clients/cli/main.${extension}`, import.meta.url));
}
