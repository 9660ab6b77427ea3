// The command that starts each kind of engine: which program, with which flags, and how its output is read.
import { createHmac } from "node:crypto";
import { fileURLToPath } from "node:url";
import { isLoopbackHost } from "../common/address.ts";
import { ConfigError } from "../common/config.ts";
import type { EngineKind, Launch, LaunchOptions, ListenAddresses } from "./engine.ts";
import { vllmCommand, type VllmOptions } from "./vllm-command.ts";
import { p2pKvLoss, readVllmOutput, vllmReason } from "./vllm-output.ts";
import { findVllm, type VllmProgram } from "./vllm-program.ts";

/** What only vLLM needs to know. */
export interface VllmLaunchOptions extends Pick<VllmOptions, "servedName" | "gpus" | "poolGib"> {
  /** Program and words before vLLM's own. Empty: found. */
  readonly command: string;
  /** Where P2P engines of this instance ping, which reports their actual KV address. */
  readonly pings?: () => Promise<EnginePings>;
  /** For Hugging Face. Empty: as inherited. */
  readonly hfToken: string;
}

export interface EnginePings {
  /** host:port of the ROUTER. */
  readonly address: string;
  /** The ping of the engine that names this HTTP port; undefined if none arrived within `timeoutMs`. */
  awaitPort(httpPort: number, timeoutMs: number): Promise<{ readonly kvAddress: string } | undefined>;
}

/** An engine pings every 3 s, and first before its HTTP answers. */
const PING_WAIT_MS = 10_000;

/** @throws ConfigError for a kind that Tandem can't start, or a flag that it gives the engine itself. */
export function launcherOf(
  kind: EngineKind,
  o: LaunchOptions,
  vllm: VllmLaunchOptions,
): (ports: ListenAddresses) => Launch | Promise<Launch> {
  if (kind === "vllm") {
    if (o.model === "")
      throw new ConfigError("--engine vllm needs a model: --model ID of Hugging Face, or the path of a folder.");
    return vllmLauncher(o, vllm);
  }
  checkEngineFlags(o.flags);
  const name = kind === "sim" ? o.model : vllm.servedName;
  const file = o.model === "" ? "--no-sim" : `--model.file=${o.model}`;
  return ({ socketPath, kvHost, kvPort }) => ({
    command: process.execPath,
    env: {
      ...(kind === "embedded" ? SMALL_MEMORY_ENV : {}),
      // In the environment: other users can read command lines.
      TANDEM_KV_KEY: kvKeyOf(o.token),
      // Its standard input ends with its wrapper.
      TANDEM_PARENT_PIPE: "1",
    },
    args: [
      ...process.execArgv.filter((arg) => !arg.startsWith("--inspect")),
      ...(kind === "embedded" ? SMALL_MEMORY_FLAGS : []),
      cliMain(),
      "engine",
      kind === "sim" ? "--sim" : file,
      ...(name === "" ? [] : [`--model.name=${name}`]),
      `--uds=${socketPath}`,
      `--kv.listen=${kvHost}:${kvPort}`,
      // A host other than loopback is there for partners on other machines.
      ...(isLoopbackHost(kvHost) ? [] : ["--expose"]),
      `--role=${o.role}`,
      `--connector=${o.connector}`,
      `--kv.slots=${o.slots}`,
      ...o.flags,
    ],
  });
}

/** The same for all engines of a deployment, without telling them its token. */
function kvKeyOf(token = ""): string {
  return token === "" ? "" : createHmac("sha256", token).update("kv").digest("hex");
}

const SOCKET = "Tandem gives the engine a socket that only this user can open";
/** The flags of `tandem engine` that are Tandem's own here, and what decides them. Aliases included. */
const OWN_FLAGS: Readonly<Record<string, string>> = {
  "--sim": "--engine decides that",
  "--model.file": "give it with --model",
  "--model": "give it with --model",
  "--model.name": "give it with --served_name, or with --model for the sim",
  "--listen": SOCKET,
  "--port": SOCKET,
  "--uds": SOCKET,
  "--kv.listen": "give the instance its --kv.listen",
  "--expose": "Tandem adds it where the host of --kv.listen is not loopback",
  "--role": "the instance decides that",
  "--connector": "give it with --connector",
  "--kv.slots": "give it with --slots",
  "--kv.key": "Tandem makes it from --token",
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

// `tandem engine`, the same build as this file: main.ts beside the sources, main.js in dist.
function cliMain(): string {
  const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
  return fileURLToPath(new URL(`../../clients/cli/main.${extension}`, import.meta.url));
}

function vllmLauncher(o: LaunchOptions, given: VllmLaunchOptions): (ports: ListenAddresses) => Promise<Launch> {
  let found: Promise<VllmProgram> | undefined;
  return async (addresses) => {
    // Asked once: a version that changes under a running instance would not pair with its partners anyway.
    const { words, version } = await (found ??= findVllm(given.command));
    const isP2p = o.connector === "p2p-nccl";
    const pings = isP2p ? await given.pings?.() : undefined;
    const { args, env } = vllmCommand({ ...o, ...given, ...addresses, version, pingAddress: pings?.address ?? "" });
    const [command, ...first] = words;
    return {
      command,
      args: [...first, ...args],
      env: given.hfToken === "" ? env : { ...env, HF_TOKEN: given.hfToken },
      devices: version.includes("cpu") ? [] : devicesOf(given.gpus),
      firstPhase: `loading vLLM ${version}`,
      ...readVllmOutput(),
      ...(isP2p && { brokenBy: p2pKvLoss }),
      // The cause precedes two tracebacks of processes that only reported it.
      keepLines: 300,
      reasonOf: vllmReason,
      ...(pings && {
        toldKvAddress: async () => (await pings.awaitPort(addresses.kvPort, PING_WAIT_MS))?.kvAddress,
      }),
    };
  };
}

/** The devices on which one engine starts after another. */
function devicesOf(gpus: string): readonly string[] {
  const visible = gpus || process.env["CUDA_VISIBLE_DEVICES"];
  return visible ? visible.split(",").map((one) => `gpu-${one.trim()}`) : ["gpu-0"];
}
