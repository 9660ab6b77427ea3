// What vLLM writes while it starts: how far it is, and which settings it ended up with. Patterns hold for 0.23 and
// 0.32; a line that changed its words costs a phase in the progress, and a finding of the doctor says "not known".
import type { EngineFacts, Launch } from "./engine.ts";

/** `$1` stands for the first group of the pattern. */
const PHASES: readonly (readonly [RegExp, string])[] = [
  [/non-default args:/, "reading the model's configuration"],
  [/Initializing a V1 LLM engine/, "starting the engine process"],
  [/Starting to load model/, "loading weights"],
  [/Loading (?:safetensors|pt|bin)[^:]*: +\d+% Completed \| (\d+)\/(\d+)/, "loading weights ($1 of $2 files)"],
  [/torch\.compile takes|Compiling a graph|Start compiling function|Dynamo bytecode transform/, "compiling"],
  [/Available KV cache memory|(?:GPU|CPU) KV cache size/, "allocating the KV cache"],
  [/Capturing CUDA graphs?.*?(\d+)%/, "capturing CUDA graphs ($1 %)"],
  [/Registering KV_Caches|Initializing NIXL worker|P2pNcclEngine init/i, "opening the KV side channel"],
  [/init engine \(profile, create kv cache, warmup model\)/, "warming up"],
  [/Starting vLLM (?:API )?server|Application startup complete/, "opening its API"],
];

/** How far a vLLM that starts is, and what it made of its flags. */
export function readVllmOutput(): Required<Pick<Launch, "phaseOf" | "learned">> {
  let facts: Partial<EngineFacts> = {};
  let kvGibARank = 0;
  let last = "";
  return {
    phaseOf(line) {
      if (line.includes("LLM engine (v") && line.includes("with config:")) facts = readSettings(line);
      // The metrics of vLLM up to 0.31 report no bytes.
      kvGibARank = Number(/Available KV cache memory: ([\d.]+) GiB/.exec(line)?.[1] ?? kvGibARank);
      for (const [pattern, phase] of PHASES) {
        const found = pattern.exec(line);
        if (found === null) continue;
        const name = phase.replaceAll(/\$(\d)/g, (_, group: string) => found[Number(group)]!);
        if (name === last) return undefined;
        last = name;
        return name;
      }
      return undefined;
    },
    learned: () => ({
      ...facts,
      ...(kvGibARank > 0 ? { kvCacheBytes: Math.round(kvGibARank * 2 ** 30 * (facts.tpSize ?? 1)) } : {}),
    }),
  };
}

/** @param line Its own `Initializing a V1 LLM engine (v…) with config: …`. */
export function readSettings(line: string): Partial<EngineFacts> {
  const text = (pattern: RegExp): string | undefined => pattern.exec(line)?.[1];
  const flag = (name: string): boolean | undefined => {
    const value = text(new RegExp(`\\b${name}=(True|False)`));
    return value === undefined ? undefined : value === "True";
  };
  const tpSize = text(/\btensor_parallel_size=(\d+)/);
  const found = {
    modelRoot: text(/\bmodel='([^']*)'/),
    dtype: text(/[ ,]dtype=torch\.(\w+)/),
    tpSize: tpSize && Number(tpSize),
    enforceEager: flag("enforce_eager"),
    chunkedPrefill: flag("enable_chunked_prefill"),
    cudagraphMode: text(/cudagraph_mode'?[:=] ?<?(?:CUDAGraphMode\.)?([A-Z_]+)/),
    kvDtype: text(/\bkv_cache_dtype=(\w+)/),
  };
  return Object.fromEntries(Object.entries(found).filter(([, value]) => value !== undefined));
}

// vLLM 0.20.2 to 0.23, p2p_nccl_engine.py, listen_for_requests, and p2p_nccl_connector.py, start_load_kv.
const KV_LOSSES: readonly (readonly [RegExp, string])[] = [
  [
    /Recv Tensor, Out Of Memory|kv_cache is None/,
    "its GPU had no memory for KV that it received, and vLLM would answer without that KV: give it fewer slots, or a smaller --gpu-memory-utilization",
  ],
  [
    /ValueError: Insufficient memory/,
    "its pool for KV is full, after which vLLM receives no more: give it a larger --vllm.pool_gib, or fewer slots",
  ],
];

/** Why a P2P engine that wrote this can no longer be trusted: it keeps answering 200 although KV was lost. */
export function p2pKvLoss(line: string): string | undefined {
  return KV_LOSSES.find(([pattern]) => pattern.test(line))?.[1];
}

/** A process of vLLM that only reports the failure of another one. */
const HEARSAY =
  /Engine core initialization failed|EngineDeadError|EngineCore encountered an issue|See root cause above|SystemExit/;
/** `(EngineCore pid=77) ERROR 11-22 16:31:46 [core.py:133] ` */
const PREFIX =
  /^\((?:APIServer|EngineCore|Worker)[^)]*\)\s*|^(?:ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]*\] )?/;

/** Why vLLM failed, from its last lines: the exceptions themselves, without their stacks, the first cause last. */
export function vllmReason(lines: readonly string[]): readonly string[] {
  const bare = lines.map((line) => line.replace(PREFIX, "").replace(PREFIX, "").trimEnd());
  const named = bare.filter(
    (line) =>
      /^(?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt|Killed)\b: ?\S/.test(line) ||
      /^vllm(?: serve)?: error: /.test(line),
  );
  const causes = [...new Set(named.filter((line) => !HEARSAY.test(line)))];
  if (causes.length > 0) return causes.slice(-2);
  const errors = bare.filter(
    (_, index) => /\b(?:ERROR|CRITICAL)\b/.test(lines[index]!) && !HEARSAY.test(lines[index]!),
  );
  return errors.length > 0 ? errors.slice(-3) : bare.slice(-5);
}
