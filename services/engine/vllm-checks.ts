// Checks whether one vLLM can be half of a pair, judged from the facts it reported. vLLM checks none of this itself:
// a fault shows as garbage with HTTP 200, as a hang, or as a dead engine. Sources: docs/vllm.md.
import type { EngineFacts } from "./engine.ts";
import { finding, type Finding } from "./findings.ts";
import { connectorFault } from "./vllm-command.ts";

export interface VllmChecked {
  readonly role: "prefill" | "decode";
  readonly connector: string;
  readonly facts: EngineFacts;
  /** Started by Tandem, with its flags and its environment; else attached. */
  readonly launched: boolean;
  /** host:port of its KV side channel. Empty where none is known. */
  readonly kvAddress: string;
  readonly ranks: number;
  readonly p2pPoolGib: number;
  /** Bytes that processes could still have, without the engine's own. */
  readonly freeMemoryBytes: number;
  readonly totalMemoryBytes: number;
  readonly env: Readonly<Record<string, string | undefined>>;
}

const GIB = 2 ** 30;

/** Returns findings in a fixed order, passed checks included, so that an operator sees what was checked. */
export function checkVllm(o: VllmChecked): Finding[] {
  const p2p = o.connector === "p2p-nccl";
  return [
    version(o),
    ...(p2p
      ? [requestIds(o), graphs(o), ...(o.role === "prefill" ? [chunks(o)] : []), kvHost(o), hostMemory(o)]
      : [modelRoot(o)]),
    dtype(o),
    counters(o),
    ...ncclVariables(o),
  ];
}

function version({ connector, facts }: VllmChecked): Finding {
  const fault = connectorFault(connector, facts.version);
  if (fault !== undefined)
    return finding(
      "version",
      "error",
      `${fault}.`,
      "Install the version named, or give the other connector, on all instances alike.",
    );
  return finding("version", "ok", `vLLM ${facts.version} moves KV by ${connector}.`);
}

function requestIds({ launched, env }: VllmChecked): Finding {
  if (launched) return finding("request_ids", "ok", "Request ids reach both engines as they are.");
  const here = env["VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"] === "1" ? "" : "Tandem can't see this from outside. ";
  return finding(
    "request_ids",
    "unknown",
    `${here}An attached engine that appends its own digits to request ids waits forever for KV under another name.`,
    "Start both engines with VLLM_DISABLE_REQUEST_ID_RANDOMIZATION=1.",
  );
}

function graphs({ role, facts }: VllmChecked): Finding {
  const { enforceEager, cudagraphMode } = facts.vllm ?? {};
  const cure =
    role === "decode"
      ? `Start it with --compilation-config '{"cudagraph_mode":"PIECEWISE"}' or --enforce-eager.`
      : "Start it with --enforce-eager.";
  if (enforceEager === undefined && cudagraphMode === undefined) {
    return finding(
      "cuda_graphs",
      "unknown",
      "An attached engine doesn't report its CUDA-graph mode. The probe of each pair shows whether the mode works.",
      cure,
    );
  }
  const mode = enforceEager === true ? "NONE" : (cudagraphMode ?? "FULL_AND_PIECEWISE");
  if (mode === "NONE" || mode === "PIECEWISE") return finding("cuda_graphs", "ok", `CUDA graphs: ${mode}.`);
  return role === "decode"
    ? finding(
        "cuda_graphs",
        "error",
        `CUDA graphs: ${mode}. With P2P NCCL, such an engine answers 200 with garbage, because it never loaded the KV.`,
        cure,
      )
    : finding(
        "cuda_graphs",
        "error",
        `CUDA graphs: ${mode}. A step that replays a whole graph sends no KV, and decode waits for the KV forever.`,
        cure,
      );
}

function chunks({ facts }: VllmChecked): Finding {
  const chunked = facts.vllm?.chunkedPrefill;
  const cure =
    "Start it with --no-enable-chunked-prefill and --max-num-batched-tokens no smaller than --max-model-len.";
  if (chunked === undefined)
    return finding("chunked_prefill", "unknown", "An attached engine doesn't report whether it chunks prompts.", cure);
  if (!chunked) return finding("chunked_prefill", "ok", "Prompts are computed whole.");
  return finding(
    "chunked_prefill",
    "warning",
    "Prompts are chunked: vLLM 0.23 may crash on an assertion when the last chunk needs no new KV block.",
    cure,
  );
}

function kvHost({ kvAddress }: VllmChecked): Finding {
  if (/^\d{1,3}(\.\d{1,3}){3}:\d+$/.test(kvAddress)) return finding("kv_address", "ok", `KV arrives at ${kvAddress}.`);
  return finding(
    "kv_address",
    "error",
    `The KV address ${kvAddress} is not an IPv4 literal, and vLLM's request ids need one.`,
    "Set VLLM_HOST_IP, and the host of kv.listen, to an IPv4 address that partners can reach.",
  );
}

/** P2P's pinned pool is already allocated when this runs; the remaining memory must do for everything else. */
function hostMemory({ launched, ranks, p2pPoolGib, freeMemoryBytes, totalMemoryBytes }: VllmChecked): Finding {
  const cure =
    "Give a smaller --vllm.pool_gib (attached: mem_pool_size_gb, 32 by default, on every rank of both roles), or fewer engines to this host.";
  const free = `${(freeMemoryBytes / GIB).toFixed(1)} of ${(totalMemoryBytes / GIB).toFixed(1)} GiB are free`;
  if (!launched)
    return finding("host_memory", "unknown", `The size of an attached engine's pinned pool is unknown; ${free}.`, cure);
  // vLLM rounds up to a power of two.
  const poolGib = 2 ** Math.ceil(Math.log2(p2pPoolGib)) * ranks;
  const message = `Its pinned pool takes ${poolGib} GiB on this host; ${free}.`;
  const scarce = poolGib * GIB > totalMemoryBytes / 2 || freeMemoryBytes < 2 * GIB;
  return scarce ? finding("host_memory", "warning", message, cure) : finding("host_memory", "ok", message);
}

function modelRoot({ facts }: VllmChecked): Finding {
  const root = facts.modelRoot ?? "";
  if (root === "")
    return finding(
      "model_path",
      "unknown",
      "The engine doesn't report its model's path.",
      "Give both engines the same text as their model.",
    );
  return finding("model_path", "ok", `Its model is ${root}; NIXL pairs it with engines that were given the same text.`);
}

function dtype({ facts }: VllmChecked): Finding {
  if ((facts.dtype ?? "") === "") {
    return finding(
      "dtype",
      "unknown",
      "An attached engine doesn't report its dtype.",
      "Give both engines the same --dtype.",
    );
  }
  const kv = facts.vllm?.kvDtype;
  return finding(
    "dtype",
    "ok",
    `Numbers are ${facts.dtype}${kv === undefined || kv === "auto" ? "" : `, in the KV cache ${kv}`}; KV blocks hold ${facts.blockSize || "an unknown number of"} tokens; ${facts.tpSize ?? 1} rank(s).`,
  );
}

function counters({ facts }: VllmChecked): Finding {
  // No cache_config_info where --disable-log-stats left all series out.
  if (facts.blockSize > 0)
    return finding("counters", "ok", "The engine counts its tokens, so a stalled engine is detected.");
  return finding(
    "counters",
    "warning",
    "The engine reports no KV-cache figures. If it was started with --disable-log-stats, a stall would go unnoticed.",
    "Start it without --disable-log-stats.",
  );
}

function ncclVariables({ connector, env, launched }: VllmChecked): Finding[] {
  if (connector !== "p2p-nccl" || !launched) return [];
  const found: Finding[] = [];
  if (env["NCCL_P2P_DISABLE"] === "1") {
    found.push(
      finding(
        "nccl",
        "warning",
        "NCCL_P2P_DISABLE=1: KV between GPUs of this host goes through host memory, many times slower.",
        "Unset NCCL_P2P_DISABLE, unless this host's GPUs can't reach one another.",
      ),
    );
  }
  for (const name of ["NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS", "NCCL_CUMEM_ENABLE"]) {
    if (env[name] !== undefined)
      found.push(
        finding(
          "nccl",
          "warning",
          `${name} is set, and vLLM sets its own while it connects: yours has no effect.`,
          `Unset ${name}.`,
        ),
      );
  }
  return found.length > 0 ? found : [finding("nccl", "ok", "No NCCL variable interferes.")];
}
