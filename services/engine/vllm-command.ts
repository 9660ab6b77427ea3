// The command line and environment of a vLLM that is half of a pair. A pure function of role, connector, version and
// what the user asked for. vLLM checks next to nothing of this itself: if something is wrong, it answers from wrong KV
// or hangs forever. Sources: vLLM 0.23.0 and 0.32.0, and what was seen on GPUs (docs/vllm.md has both).
import { basename } from "node:path";
import { splitAddress } from "../common/address.ts";
import { ConfigError } from "../common/config.ts";
import type { Launch, LaunchOptions, ListenAddresses } from "./engine.ts";
import { checkGivenFlags, givenFlags, type GivenFlags } from "./vllm-flags.ts";

/** `connector` is `p2p-nccl` or `nixl`. NIXL refuses to pair engines whose `model` texts differ, even for the same files. */
export interface VllmOptions extends LaunchOptions, ListenAddresses {
  /** As the package has it: `0.32.0+cpu`. */
  readonly version: string;
  /** Name for clients. Empty: made from `model`. */
  readonly servedName: string;
  /** Value of CUDA_VISIBLE_DEVICES. Empty: as inherited. */
  readonly gpus: string;
  /** GiB of pinned host memory that a P2P engine takes at its start, on every rank. */
  readonly poolGib: number;
  /** host:port of the ROUTER that P2P engines ping. Empty: none. */
  readonly pingAddress: string;
}

/** In `env`, undefined removes a variable from what is inherited. */
type VllmCommand = Required<Pick<Launch, "args" | "env">>;

/** The first version whose request ids were randomised only where asked, and the first without P2pNcclConnector. */
const P2P_FIRST = "0.20.2";
const P2P_GONE = "0.24";
const NIXL_FIRST = "0.22";
const NIXL_ROLES = "0.23";

/** Names no host, so that an engine fetches no picture from anywhere. RFC 2606 keeps `.invalid` free permanently. */
const NO_MEDIA_DOMAIN = "media.invalid";

/** @throws ConfigError that says which flag, version or connector to change. */
export function vllmCommand(o: VllmOptions): VllmCommand {
  const fault = connectorFault(o.connector, o.version);
  if (fault !== undefined) throw new ConfigError(`--connector ${o.connector}: ${fault}.`);
  const given = checkGivenFlags(o.flags);
  const parts = o.connector === "p2p-nccl" ? p2pNccl(o, given) : nixl(o);
  return {
    args: [
      "serve",
      o.model,
      ...["--served-model-name", o.servedName === "" ? servedNameOf(o.model) : o.servedName],
      // Every version that Tandem starts has --uds (vllm-project/vllm#18097, of 2025).
      ...["--uds", o.socketPath, "--disable-uvicorn-access-log"],
      ...unlessGiven(given, "--max-num-seqs", String(o.slots)),
      // A URL in a client's message would be fetched from inside the network; a path is refused by vLLM's default.
      ...unlessGiven(given, "--allowed-media-domains", NO_MEDIA_DOMAIN),
      // Decode counts the KV it was sent as cached in some versions: prefill's figure is the true one.
      ...(o.role === "prefill" ? unlessGiven(given, "--enable-prompt-tokens-details") : []),
      ...parts.args,
      ...o.flags,
    ],
    env: {
      VLLM_HOST_IP: o.kvHost,
      VLLM_MEDIA_URL_ALLOW_REDIRECTS: "0",
      // The Rust front end knows other endpoints; the developer mode opens paths that reset and stop the engine.
      VLLM_USE_RUST_FRONTEND: undefined,
      VLLM_SERVER_DEV_MODE: undefined,
      // A server that outlives its engine answers 200 and serves no purpose.
      VLLM_KEEP_ALIVE_ON_ENGINE_DEATH: undefined,
      // Ours to give, not to inherit: another key would lock Tandem out.
      VLLM_API_KEY: undefined,
      PYTHONUNBUFFERED: "1",
      ...(o.gpus === "" ? {} : { CUDA_VISIBLE_DEVICES: o.gpus }),
      ...parts.env,
    },
  };
}

function unlessGiven(given: GivenFlags, name: string, ...value: readonly string[]): readonly string[] {
  return given.has(name) ? [] : [name, ...value];
}

/** Ranks of an engine with these flags, which is also the number of KV ports that it takes in a row. */
export function ranksOf(flags: readonly string[]): number {
  const given = givenFlags(flags);
  const size = (name: string, short: string): number => {
    const value = Number(given.get(name) ?? given.get(short) ?? 1);
    return Number.isInteger(value) && value > 0 ? value : 1;
  };
  return size("--tensor-parallel-size", "-tp") * size("--pipeline-parallel-size", "-pp");
}

/** The last part of a folder's path, so that clients see no path of this machine; an id of Hugging Face as it is. */
export function servedNameOf(model: string): string {
  return /^[./~]/.test(model) ? basename(model) : model;
}

function p2pNccl(o: VllmOptions, given: GivenFlags): VllmCommand {
  if (!/^\d{1,3}(\.\d{1,3}){3}$/.test(o.kvHost)) {
    throw new ConfigError(
      `kv.listen: P2P NCCL needs an IPv4 address, not ${o.kvHost}: it becomes part of every request id.`,
    );
  }
  if (given.has("--speculative-config")) {
    throw new ConfigError(
      "vLLM's --speculative-config can't be given with connector p2p-nccl: prefill must take one step a request.",
    );
  }
  const producer = o.role === "prefill";
  const ping = splitAddress(o.pingAddress);
  const config = {
    kv_connector: "P2pNcclConnector",
    kv_role: producer ? "kv_producer" : "kv_consumer",
    // Bytes of received KV that stay on the GPU; more goes to the host pool. A producer that pushes has no use for it.
    kv_buffer_size: producer ? "1e1" : "8e9",
    kv_port: String(o.kvPort),
    kv_connector_extra_config: {
      send_type: "PUT_ASYNC",
      // Text, both: vLLM 0.23 puts them into the environment and an address.
      nccl_num_channels: "16",
      ...(o.pingAddress === "" ? {} : { proxy_ip: ping.host, proxy_port: String(ping.port) }),
      // A name in its pings. Its API is on a socket; no two engines of a machine have the same KV port.
      http_port: String(o.kvPort),
      mem_pool_size_gb: o.poolGib,
    },
  };
  return {
    args: ["--kv-transfer-config", JSON.stringify(config), ...(producer ? p2pPrefill(given) : p2pDecode(given))],
    // Otherwise each engine appends its own digits to the id, and decode waits forever for KV under another name.
    env: { VLLM_DISABLE_REQUEST_ID_RANDOMIZATION: "1" },
  };
}

function p2pPrefill(given: GivenFlags): string[] {
  for (const name of ["--enable-chunked-prefill", "--no-enforce-eager"]) {
    if (given.has(name))
      throw new ConfigError(
        `vLLM's ${name} can't be given to prefill with connector p2p-nccl: its KV might not be sent.`,
      );
  }
  const longest = given.get("--max-model-len") ?? "";
  return [
    // A step that replays a whole graph skips the code that sends the KV.
    ...unlessGiven(given, "--enforce-eager"),
    // A prompt whose last chunk needs no new block crashes vLLM 0.23 on an assertion.
    ...unlessGiven(given, "--no-enable-chunked-prefill"),
    ...(/^\d+$/.test(longest)
      ? unlessGiven(given, "--max-num-batched-tokens", String(Math.max(8_192, Number(longest))))
      : []),
    ...unlessGiven(given, "--gpu-memory-utilization", "0.9"),
  ];
}

function p2pDecode(given: GivenFlags): string[] {
  // With vLLM's default graphs decode answers 200 from KV it never loaded (seen on 0.23).
  const graphs = [...given].filter(([name]) =>
    /^(--compilation-config|-cc|-O\d?|--optimization-level)(\.|$)/.test(name),
  );
  const unsafe = graphs.find((flag) => !hasSafeGraphs(...flag));
  const isEager = given.has("--enforce-eager");
  if (!isEager && unsafe !== undefined) {
    throw new ConfigError(
      `vLLM's ${unsafe[0]} can't be given to decode with connector p2p-nccl as it is: only {"cudagraph_mode":"PIECEWISE"} or --enforce-eager load the KV they are sent.`,
    );
  }
  return [
    ...(isEager || graphs.length > 0 ? [] : ["--compilation-config", '{"cudagraph_mode":"PIECEWISE"}']),
    // Received KV lies outside of what vLLM plans with until its request has ended.
    ...unlessGiven(given, "--gpu-memory-utilization", "0.7"),
  ];
}

function hasSafeGraphs(name: string, value = ""): boolean {
  if (name !== "--compilation-config" && name !== "-cc") return false;
  try {
    return ["PIECEWISE", "NONE"].includes((JSON.parse(value) as { cudagraph_mode?: string }).cudagraph_mode!);
  } catch {
    return false;
  }
}

function nixl(o: VllmOptions): VllmCommand {
  const config = {
    kv_connector: "NixlConnector",
    // 0.23.0 calls `kv_both` deprecated (nixl/connector.py); of 0.22 only that was tested.
    kv_role: isBefore(o.version, NIXL_ROLES) ? "kv_both" : o.role === "prefill" ? "kv_producer" : "kv_consumer",
    ...(o.version.includes("cpu") ? { kv_buffer_device: "cpu" } : {}),
    // A transfer that failed must be an error that Tandem retries and counts, not a silent second prefill on decode.
    kv_load_failure_policy: "fail",
  };
  return {
    args: ["--kv-transfer-config", JSON.stringify(config)],
    env: {
      VLLM_NIXL_SIDE_CHANNEL_HOST: o.kvHost,
      VLLM_NIXL_SIDE_CHANNEL_PORT: String(o.kvPort),
      VLLM_DISABLE_REQUEST_ID_RANDOMIZATION: undefined,
    },
  };
}

/** Why this version of vLLM can't move KV that way; undefined where it can. */
export function connectorFault(connector: string, version: string): string | undefined {
  if (connector === "p2p-nccl") {
    if (!isBefore(version, P2P_GONE))
      return `vLLM ${version} has no P2pNcclConnector: it was removed in 0.24. Use --connector nixl, or vLLM 0.23.0`;
    if (isBefore(version, P2P_FIRST))
      return `vLLM ${version} is older than 0.20.2, the first version whose P2pNcclConnector was tested. Use vLLM 0.23.0`;
    if (version.includes("cpu"))
      return `P2P NCCL needs GPUs, and vLLM ${version} is built for the CPU. Use --connector nixl`;
    return undefined;
  }
  if (connector === "nixl") {
    return isBefore(version, NIXL_FIRST)
      ? `vLLM ${version} has no lease on KV under NIXL, which came with 0.22. Use a later vLLM`
      : undefined;
  }
  return `vLLM has no connector ${connector}. Use --connector nixl, or p2p-nccl with vLLM 0.23.0`;
}

const { compare } = new Intl.Collator("en", { numeric: true });

function isBefore(version: string, limit: string): boolean {
  // A build from source without a version is treated as a new one.
  const found = /^\d+\.\d+(\.\d+)?/.exec(version)?.[0];
  return found !== undefined && compare(found, limit) < 0;
}
