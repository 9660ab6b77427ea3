// Starts of vLLM: which program, with which flags, and what is learned from its output while it loads.
import { vllmCommand } from "./vllm-command.ts";
import { p2pKvLoss, readVllmOutput, vllmReason } from "./vllm-output.ts";
import { findVllm, type VllmProgram } from "./vllm-program.ts";
import type { Launch, LaunchOptions, LaunchPorts } from "./engine.ts";

/** What only vLLM needs to know. */
export interface VllmSettingsGiven {
  /** Program and words before vLLM's own. Empty: found. */
  readonly command: string;
  /** Name for clients. Empty: made from the model. */
  readonly servedName: string;
  /** Value of CUDA_VISIBLE_DEVICES. Empty: as inherited. */
  readonly gpus: string;
  /** GiB of pinned host memory of a P2P engine. */
  readonly p2pPoolGib: number;
  /** Where P2P engines of this instance ping, which reports their actual KV address. */
  readonly pings?: (() => Promise<EnginePings>) | undefined;
  /** For Hugging Face. Empty: as inherited. */
  readonly hfToken: string;
}

export interface EnginePings {
  /** host:port of the ROUTER. */
  readonly address: string;
  /** The ping of the engine with this HTTP port; undefined if none arrived within `timeoutMs`. */
  awaitPort(httpPort: number, timeoutMs: number): Promise<{ readonly kvAddress: string } | undefined>;
}

/** An engine pings every 3 s, and first before its HTTP answers. */
const PING_WAIT_MS = 10_000;

export function vllmLauncher(o: LaunchOptions, given: VllmSettingsGiven): (ports: LaunchPorts) => Promise<Launch> {
  let found: Promise<VllmProgram> | undefined;
  return async (ports) => {
    // Asked once: a version that changes under a running instance would not pair with its partners anyway.
    const program = await (found ??= findVllm(given.command));
    const pings = o.connector === "p2p-nccl" ? await given.pings?.() : undefined;
    const { args, env } = vllmCommand({
      ...o,
      ...given,
      ...ports,
      version: program.version,
      pingAddress: pings?.address ?? "",
    });
    const output = readVllmOutput();
    const [command, ...words] = program.words;
    return {
      command,
      args: [...words, ...args],
      env: given.hfToken === "" ? env : { ...env, HF_TOKEN: given.hfToken },
      devices: program.version.includes("cpu") ? [] : devicesOf(given.gpus),
      phaseOf: output.line,
      ...(o.connector === "p2p-nccl" ? { brokenBy: p2pKvLoss } : {}),
      // The cause precedes two tracebacks of processes that only reported it.
      keepLines: 300,
      reasonOf: vllmReason,
      firstPhase: `loading vLLM ${program.version}`,
      ...(pings === undefined
        ? {}
        : { toldKvAddress: async () => (await pings.awaitPort(ports.httpPort, PING_WAIT_MS))?.kvAddress }),
      learned: () => {
        const { dtype, tpSize, model } = output.settings;
        return {
          vllm: output.settings,
          ...(dtype === undefined ? {} : { dtype }),
          ...(tpSize === undefined ? {} : { tpSize }),
          ...(model === undefined ? {} : { modelRoot: model }),
        };
      },
    };
  };
}

/** The devices on which one engine starts after another. */
function devicesOf(gpus: string): readonly string[] {
  const visible = gpus === "" ? (process.env["CUDA_VISIBLE_DEVICES"] ?? "") : gpus;
  return visible === "" ? ["gpu-0"] : visible.split(",").map((one) => `gpu-${one.trim()}`);
}
