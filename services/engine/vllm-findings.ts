// Whether one vLLM can be half of a pair, judged from the facts it reported. vLLM checks none of this itself: a fault
// shows as garbage with HTTP 200, as a hang, or as a dead engine. Sources: docs/vllm.md.
import { create } from "@bufbuild/protobuf";
import { FindingLevel, FindingSchema, type Finding } from "#gen/tandem/instance/v1/instance_pb.js";
import { isLoopbackHost } from "../common/address.ts";
import type { EngineFacts, LaunchOptions } from "./engine.ts";
import { socketPathOf } from "./http.ts";
import { connectorFault } from "./vllm-command.ts";

const { OK, UNKNOWN, WARNING, ERROR } = FindingLevel;
const GIB = 2 ** 30;

export interface DiagnosedVllm extends Pick<LaunchOptions, "role" | "connector"> {
  readonly facts: EngineFacts;
  /** Started by Tandem, with its flags and its environment; else attached. */
  readonly launched: boolean;
  /** host:port of its KV side channel. Empty where none is known. */
  readonly kvAddress: string;
  /** Where its KV side channel listens. Empty where that is not known. */
  readonly kvHost: string;
  /** Of its API: http://host:port, or unix:/path. */
  readonly url: string;
  /** Whether Tandem has a key for its API. */
  readonly hasApiKey: boolean;
  readonly ranks: number;
  readonly poolGib: number;
  /** Bytes that processes could still have, without the engine's own. */
  readonly freeMemoryBytes: number;
  readonly totalMemoryBytes: number;
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** Findings in a fixed order, passed checks included, so that an operator sees what was checked. */
export function vllmFindings(o: DiagnosedVllm): Finding[] {
  const isP2p = o.connector === "p2p-nccl";
  return [
    version(o),
    ...(isP2p
      ? [requestIds(o), graphs(o), ...(o.role === "prefill" ? [chunks(o)] : []), kvHost(o), hostMemory(o)]
      : [modelRoot(o)]),
    dtype(o),
    counters(o),
    apiDoor(o),
    kvDoor(o),
    ...(isP2p && o.launched ? ncclVariables(o) : []),
  ];
}

/** `cure` is empty where nothing is to be done. */
function finding(check: string, level: FindingLevel, message: string, cure = ""): Finding {
  return create(FindingSchema, { check, level, message, cure });
}

function version({ connector, facts }: DiagnosedVllm): Finding {
  const fault = connectorFault(connector, facts.version);
  if (fault === undefined) return finding("version", OK, `vLLM ${facts.version} moves KV by ${connector}.`);
  const cure = "Install the version named, or give the other connector, on all instances alike.";
  return finding("version", ERROR, `${fault}.`, cure);
}

function requestIds({ launched, env }: DiagnosedVllm): Finding {
  if (launched) return finding("request_ids", OK, "Request ids reach both engines as they are.");
  const here = env["VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"] === "1" ? "" : "Tandem can't see this from outside. ";
  const message = `${here}An attached engine that appends its own digits to request ids waits forever for KV under another name.`;
  return finding("request_ids", UNKNOWN, message, "Start both engines with VLLM_DISABLE_REQUEST_ID_RANDOMIZATION=1.");
}

function graphs({ role, facts: { enforceEager, cudagraphMode } }: DiagnosedVllm): Finding {
  const [cure, harm] =
    role === "decode"
      ? [
          `Start it with --compilation-config '{"cudagraph_mode":"PIECEWISE"}' or --enforce-eager.`,
          "With P2P NCCL, such an engine answers 200 with garbage, because it never loaded the KV.",
        ]
      : [
          "Start it with --enforce-eager.",
          "A step that replays a whole graph sends no KV, and decode waits for the KV forever.",
        ];
  if (enforceEager === undefined && cudagraphMode === undefined) {
    const message =
      "An attached engine doesn't report its CUDA-graph mode. The probe of each pair shows whether the mode works.";
    return finding("cuda_graphs", UNKNOWN, message, cure);
  }
  const mode = enforceEager === true ? "NONE" : (cudagraphMode ?? "FULL_AND_PIECEWISE");
  if (mode === "NONE" || mode === "PIECEWISE") return finding("cuda_graphs", OK, `CUDA graphs: ${mode}.`);
  return finding("cuda_graphs", ERROR, `CUDA graphs: ${mode}. ${harm}`, cure);
}

function chunks({ facts: { chunkedPrefill } }: DiagnosedVllm): Finding {
  if (chunkedPrefill === false) return finding("chunked_prefill", OK, "Prompts are computed whole.");
  const cure =
    "Start it with --no-enable-chunked-prefill and --max-num-batched-tokens no smaller than --max-model-len.";
  return chunkedPrefill === undefined
    ? finding("chunked_prefill", UNKNOWN, "An attached engine doesn't report whether it chunks prompts.", cure)
    : finding(
        "chunked_prefill",
        WARNING,
        "Prompts are chunked: vLLM 0.23 may crash on an assertion when the last chunk needs no new KV block.",
        cure,
      );
}

function kvHost({ kvAddress }: DiagnosedVllm): Finding {
  if (/^\d{1,3}(\.\d{1,3}){3}:\d+$/.test(kvAddress)) return finding("kv_address", OK, `KV arrives at ${kvAddress}.`);
  const message = `The KV address ${kvAddress} is not an IPv4 literal, and vLLM's request ids need one.`;
  const cure = "Set VLLM_HOST_IP, and the host of kv.listen, to an IPv4 address that partners can reach.";
  return finding("kv_address", ERROR, message, cure);
}

/** P2P's pinned pool is already allocated when this runs; the remaining memory must do for everything else. */
function hostMemory({ launched, ranks, poolGib, freeMemoryBytes, totalMemoryBytes }: DiagnosedVllm): Finding {
  const cure =
    "Give a smaller --vllm.pool_gib (attached: mem_pool_size_gb, 32 by default, on every rank of both roles), or fewer engines to this host.";
  const free = `${(freeMemoryBytes / GIB).toFixed(1)} of ${(totalMemoryBytes / GIB).toFixed(1)} GiB are free`;
  if (!launched)
    return finding("host_memory", UNKNOWN, `The size of an attached engine's pinned pool is unknown; ${free}.`, cure);
  // vLLM rounds up to a power of two.
  const pinnedGib = 2 ** Math.ceil(Math.log2(poolGib)) * ranks;
  const message = `Its pinned pool takes ${pinnedGib} GiB on this host; ${free}.`;
  const scarce = pinnedGib * GIB > totalMemoryBytes / 2 || freeMemoryBytes < 2 * GIB;
  return scarce ? finding("host_memory", WARNING, message, cure) : finding("host_memory", OK, message);
}

function modelRoot({ facts: { modelRoot: root } }: DiagnosedVllm): Finding {
  if (root)
    return finding("model_path", OK, `Its model is ${root}; NIXL pairs it with engines that were given the same text.`);
  const cure = "Give both engines the same text as their model.";
  return finding("model_path", UNKNOWN, "The engine doesn't report its model's path.", cure);
}

function dtype({ facts: { dtype: numbers, kvDtype: kv = "auto", blockSize, tpSize = 1 } }: DiagnosedVllm): Finding {
  if (!numbers) {
    const cure = "Give both engines the same --dtype.";
    return finding("dtype", UNKNOWN, "An attached engine doesn't report its dtype.", cure);
  }
  const inKv = kv === "auto" ? "" : `, in the KV cache ${kv}`;
  const blocks = `KV blocks hold ${blockSize || "an unknown number of"} tokens`;
  return finding("dtype", OK, `Numbers are ${numbers}${inKv}; ${blocks}; ${tpSize} rank(s).`);
}

function counters({ facts }: DiagnosedVllm): Finding {
  // No cache_config_info where --disable-log-stats left all series out.
  if (facts.blockSize > 0)
    return finding("counters", OK, "The engine counts its tokens, so a stalled engine is detected.");
  const message =
    "The engine reports no KV-cache figures. If it was started with --disable-log-stats, a stall would go unnoticed.";
  return finding("counters", WARNING, message, "Start it without --disable-log-stats.");
}

function apiDoor({ url, hasApiKey }: DiagnosedVllm): Finding {
  if (socketPathOf(url) !== undefined)
    return finding("api_access", OK, "Its API is on a Unix socket, open to those who may enter its folder.");
  const guarded = hasApiKey
    ? "Its API key guards only /v1, /v2 and /inference. vLLM leaves /tokenize, /invocations and /metrics open"
    : "It has no API key that Tandem knows, so its whole API is open";
  const cure =
    "Start it with --uds PATH, in a folder of mode 0700, and attach unix:PATH. Where that can't be, give it an --api-key, and let only this machine reach its port.";
  return finding("api_access", WARNING, `${guarded} to every user and machine that reaches ${url}.`, cure);
}

/** vLLM's connectors have no way to prove an engine to another one. */
function kvDoor({ connector, kvHost }: DiagnosedVllm): Finding {
  const open = `vLLM's ${connector} asks for no proof: anyone who reaches its KV ports can read KV, or stop the engine`;
  const cure = "Keep its KV ports on loopback, or in a network that only this deployment's machines are in.";
  if (kvHost === "") return finding("kv_access", UNKNOWN, `${open}. Where they are is not known.`, cure);
  if (isLoopbackHost(kvHost)) return finding("kv_access", OK, "Its KV ports are on loopback.");
  return finding("kv_access", WARNING, `${open}. They are on ${kvHost}.`, cure);
}

function ncclVariables({ env }: DiagnosedVllm): Finding[] {
  const overridden = ["NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS", "NCCL_CUMEM_ENABLE"];
  const found = overridden
    .filter((name) => env[name] !== undefined)
    .map((name) => {
      const message = `${name} is set, and vLLM sets its own while it connects: yours has no effect.`;
      return finding("nccl", WARNING, message, `Unset ${name}.`);
    });
  if (env["NCCL_P2P_DISABLE"] === "1") {
    const message = "NCCL_P2P_DISABLE=1: KV between GPUs of this host goes through host memory, many times slower.";
    const cure = "Unset NCCL_P2P_DISABLE, unless this host's GPUs can't reach one another.";
    found.unshift(finding("nccl", WARNING, message, cure));
  }
  return found.length > 0 ? found : [finding("nccl", OK, "No NCCL variable interferes.")];
}
