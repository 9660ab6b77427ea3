// The command that starts each kind of engine.
import { fileURLToPath } from "node:url";
import { ConfigError } from "../common/config.ts";
import type { EngineKind, Launch, LaunchOptions, LaunchPorts } from "./engine.ts";
import { ENGINE_HOST } from "./engine-host.ts";
import { vllmLauncher, type VllmSettingsGiven } from "./vllm-launch.ts";

/** @throws ConfigError for a kind that Tandem can't start, or a flag that it gives the engine itself. */
export function launcherOf(
  kind: EngineKind,
  o: LaunchOptions,
  vllm: VllmSettingsGiven,
): (ports: LaunchPorts) => Launch | Promise<Launch> {
  if (kind === "vllm") {
    if (o.model === "")
      throw new ConfigError("--engine vllm needs a model: --model ID of Hugging Face, or the path of a folder.");
    return vllmLauncher(o, vllm);
  }
  checkEngineFlags(o.flags);
  const model =
    kind === "sim"
      ? ["--sim", ...(o.model === "" ? [] : [`--model.name=${o.model}`])]
      : embeddedModel(o.model, vllm.servedName);
  return (ports) => ({
    command: process.execPath,
    ...(kind === "embedded" ? { env: SMALL_MEMORY_ENV } : {}),
    args: [
      ...process.execArgv.filter((arg) => !arg.startsWith("--inspect")),
      ...(kind === "embedded" ? SMALL_MEMORY_FLAGS : []),
      cliMain(),
      "engine",
      ...model,
      `--listen=${ENGINE_HOST}:${ports.httpPort}`,
      `--kv.listen=${ports.kvHost}:${ports.kvPort}`,
      // A host other than loopback is there for partners on other machines.
      ...(ports.kvHost === ENGINE_HOST ? [] : ["--expose"]),
      `--role=${o.role}`,
      `--connector=${o.connector}`,
      `--kv.slots=${o.slots}`,
      ...o.flags,
    ],
  });
}

/** The flags of `tandem engine` that are Tandem's own here, and what decides them. Aliases included. */
const OWN_FLAGS: Readonly<Record<string, string>> = {
  "--sim": "--engine decides that",
  "--model.file": "give it with --model",
  "--model": "give it with --model",
  "--model.name": "give it with --served_name, or with --model for the sim",
  "--listen": "Tandem gives the engine a port on loopback, where clients can't reach it",
  "--port": "Tandem gives the engine a port on loopback, where clients can't reach it",
  "--kv.listen": "give the instance its --kv.listen",
  "--expose": "Tandem adds it where the host of --kv.listen is not 127.0.0.1",
  "--role": "the instance decides that",
  "--connector": "give it with --connector",
  "--kv.slots": "give it with --slots",
};

function checkEngineFlags(words: readonly string[]): void {
  for (const word of words) {
    const name = word.split("=", 1)[0]!.replace(/^--no-/, "--");
    // The engine takes --kv-listen for --kv.listen.
    const own = Object.keys(OWN_FLAGS).find((flag) => flag.replaceAll(/[._]/g, "-") === name.replaceAll(/[._]/g, "-"));
    if (own !== undefined) throw new ConfigError(`The engine's ${name} can't be given: ${OWN_FLAGS[own]}.`);
  }
}

// An embedded engine lives among five other processes on a laptop. Its arithmetic is in WebAssembly, so that a small heap
// and one malloc arena cost it no speed and save a fifth of its memory (94 to 77 MB after some answers, Node 20). Blocks
// of KV go back to the system as soon as they are freed (8 MB of a decode engine after long prompts), and so does what V8
// compiled with (3 to 4 MB more).
const SMALL_MEMORY_FLAGS = ["--max-semi-space-size=1", "--optimize-for-size", "--v8-pool-size=1"];
const SMALL_MEMORY_ENV = { MALLOC_ARENA_MAX: "1", MALLOC_MMAP_THRESHOLD_: "8192" };

function embeddedModel(file: string, servedName: string): string[] {
  return [
    file === "" ? "--no-sim" : `--model.file=${file}`,
    ...(servedName === "" ? [] : [`--model.name=${servedName}`]),
  ];
}

// `tandem engine`, the same build as this file: main.ts beside the sources, main.js in dist.
function cliMain(): string {
  const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
  return fileURLToPath(new URL(`../../clients/cli/main.${extension}`, import.meta.url));
}
