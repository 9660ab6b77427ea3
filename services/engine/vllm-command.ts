// The command line and environment of a vLLM that is half of a pair. A pure function of role, connector, version and
// what the user asked for. vLLM checks next to nothing of this itself: if something is wrong, it answers from wrong KV
// or hangs forever. Sources: vLLM 0.23.0 and 0.32.0, and what was seen on GPUs (docs/vllm.md has both).
import { splitAddress } from "../common/address.ts";
import { ConfigError } from "../common/config.ts";
import { ENGINE_HOST } from "./engine-host.ts";
import { checkGivenFlags, flagOf, givenFlags, type GivenFlag } from "./vllm-flags.ts";

export interface VllmOptions {
  readonly role: "prefill" | "decode";
  /** `p2p-nccl` or `nixl`. */
  readonly connector: string;
  /** As the package has it: `0.32.0+cpu`. */
  readonly version: string;
  /** Hugging Face id or folder. NIXL refuses to pair engines whose texts differ, even for the same files. */
  readonly model: string;
  /** Name for clients. Empty: made from `model`. */
  readonly servedName: string;
  /** Port for its API, on loopback. */
  readonly httpPort: number;
  /** Host of the KV side channel, as partners dial it. */
  readonly kvHost: string;
  /** P2P: of rank 0; rank n uses the n-th after it. NIXL: the side channel. */
  readonly kvPort: number;
  /** Sequences at once. */
  readonly slots: number;
  /** Value of CUDA_VISIBLE_DEVICES. Empty: as inherited. */
  readonly gpus: string;
  /** GiB of pinned host memory that a P2P engine takes at its start, on every rank. */
  readonly p2pPoolGib: number;
  /** host:port of the ROUTER that P2P engines ping. Empty: none. */
  readonly pingAddress: string;
  /** The user's, as they are. */
  readonly flags: readonly string[];
}

export interface VllmCommand {
  readonly args: readonly string[];
  /** Undefined: removed from what is inherited. */
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** The first version without P2pNcclConnector, and the first whose request ids were randomised only where asked. */
const P2P_FIRST = [0, 20, 2] as const;
const P2P_GONE = [0, 24, 0] as const;
const NIXL_FIRST = [0, 22, 0] as const;
const NIXL_ROLES = [0, 23, 0] as const;

/** Names no host, so that an engine fetches no picture from anywhere. RFC 2606 keeps `.invalid` free permanently. */
const NO_MEDIA_DOMAIN = "media.invalid";

/** @throws ConfigError that says which flag, version or connector to change. */
export function vllmCommand(o: VllmOptions): VllmCommand {
  checkVersion(o.connector, o.version);
  const given = checkGivenFlags(o.flags);
  const isCpu = o.version.includes("cpu");
  const own: string[] = [
    "serve",
    o.model,
    "--served-model-name",
    o.servedName === "" ? servedNameOf(o.model) : o.servedName,
    "--host",
    ENGINE_HOST,
    "--port",
    String(o.httpPort),
    "--disable-uvicorn-access-log",
  ];
  const unlessGiven = (names: readonly string[], ...words: readonly string[]): void => {
    if (flagOf(given, ...names) === undefined) own.push(...words);
  };
  unlessGiven(["--max-num-seqs"], "--max-num-seqs", String(o.slots));
  // A URL in a client's message would be fetched from inside the network; a path is refused by vLLM's default.
  unlessGiven(["--allowed-media-domains"], "--allowed-media-domains", NO_MEDIA_DOMAIN);
  // Decode counts the KV it was sent as cached in some versions: prefill's figure is the true one.
  if (o.role === "prefill") unlessGiven(["--enable-prompt-tokens-details"], "--enable-prompt-tokens-details");
  const parts = o.connector === "p2p-nccl" ? p2pNccl(o, given) : nixl(o, isCpu);
  return {
    args: [...own, ...parts.args, ...o.flags],
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

/** Ranks of an engine with these flags, which is also the number of KV ports that it takes in a row. */
export function ranksOf(flags: readonly string[]): number {
  const given = givenFlags(flags);
  const size = (...names: string[]): number => {
    const value = Number(flagOf(given, ...names)?.value ?? 1);
    return Number.isInteger(value) && value > 0 ? value : 1;
  };
  return size("--tensor-parallel-size", "-tp") * size("--pipeline-parallel-size", "-pp");
}

/** The last part of a folder's path, so that clients see no path of this machine; an id of Hugging Face as it is. */
export function servedNameOf(model: string): string {
  const isPath = /^[./~]/.test(model);
  return isPath ? model.replace(/\/+$/, "").slice(model.replace(/\/+$/, "").lastIndexOf("/") + 1) : model;
}

function p2pNccl(o: VllmOptions, given: readonly GivenFlag[]): VllmCommand {
  if (!/^\d{1,3}(\.\d{1,3}){3}$/.test(o.kvHost)) {
    throw new ConfigError(
      `kv.listen: P2P NCCL needs an IPv4 address, not ${o.kvHost}: it becomes part of every request id.`,
    );
  }
  if (flagOf(given, "--speculative-config") !== undefined) {
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
      http_port: String(o.httpPort),
      mem_pool_size_gb: o.p2pPoolGib,
    },
  };
  const args = ["--kv-transfer-config", JSON.stringify(config)];
  if (producer) args.push(...p2pPrefill(given));
  else args.push(...p2pDecode(given));
  // Otherwise each engine appends its own digits to the id, and decode waits forever for KV under another name.
  return { args, env: { VLLM_DISABLE_REQUEST_ID_RANDOMIZATION: "1" } };
}

function p2pPrefill(given: readonly GivenFlag[]): string[] {
  for (const name of ["--enable-chunked-prefill", "--no-enforce-eager"]) {
    if (flagOf(given, name) !== undefined)
      throw new ConfigError(
        `vLLM's ${name} can't be given to prefill with connector p2p-nccl: its KV might not be sent.`,
      );
  }
  const args: string[] = [];
  // A step that replays a whole graph skips the code that sends the KV.
  if (flagOf(given, "--enforce-eager") === undefined) args.push("--enforce-eager");
  // A prompt whose last chunk needs no new block crashes vLLM 0.23 on an assertion.
  if (flagOf(given, "--no-enable-chunked-prefill") === undefined) args.push("--no-enable-chunked-prefill");
  const longest = flagOf(given, "--max-model-len")?.value;
  if (longest !== undefined && /^\d+$/.test(longest) && flagOf(given, "--max-num-batched-tokens") === undefined) {
    args.push("--max-num-batched-tokens", String(Math.max(8_192, Number(longest))));
  }
  if (flagOf(given, "--gpu-memory-utilization") === undefined) args.push("--gpu-memory-utilization", "0.9");
  return args;
}

function p2pDecode(given: readonly GivenFlag[]): string[] {
  const args: string[] = [];
  // With vLLM's default graphs decode answers 200 from KV it never loaded (seen on 0.23).
  const wanted = flagOf(given, "--compilation-config", "-cc", "-O", "--optimization-level");
  const member = given.find(({ name }) => /^(--compilation-config|-cc)\./.test(name));
  if (flagOf(given, "--enforce-eager") === undefined) {
    if (member !== undefined || (wanted !== undefined && !hasSafeGraphs(wanted))) {
      throw new ConfigError(
        `vLLM's ${(member ?? wanted)!.name} can't be given to decode with connector p2p-nccl as it is: only {"cudagraph_mode":"PIECEWISE"} or --enforce-eager load the KV they are sent.`,
      );
    }
    if (wanted === undefined) args.push("--compilation-config", '{"cudagraph_mode":"PIECEWISE"}');
  }
  // Received KV lies outside of what vLLM plans with until its request has ended.
  if (flagOf(given, "--gpu-memory-utilization") === undefined) args.push("--gpu-memory-utilization", "0.7");
  return args;
}

function hasSafeGraphs({ name, value }: GivenFlag): boolean {
  if (name !== "--compilation-config" && name !== "-cc") return false;
  try {
    const mode = (JSON.parse(value ?? "") as { cudagraph_mode?: unknown }).cudagraph_mode;
    return mode === "PIECEWISE" || mode === "NONE";
  } catch {
    return false;
  }
}

function nixl(o: VllmOptions, isCpu: boolean): VllmCommand {
  const config = {
    kv_connector: "NixlConnector",
    // 0.23.0 calls `kv_both` deprecated (nixl/connector.py); of 0.22 only that was tested.
    kv_role: isBefore(o.version, NIXL_ROLES) ? "kv_both" : o.role === "prefill" ? "kv_producer" : "kv_consumer",
    ...(isCpu ? { kv_buffer_device: "cpu" } : {}),
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

function checkVersion(connector: string, version: string): void {
  const fault = connectorFault(connector, version);
  if (fault !== undefined) throw new ConfigError(`--connector ${connector}: ${fault}.`);
}

function isBefore(version: string, limit: readonly [number, number, number]): boolean {
  const found = /^(\d+)\.(\d+)(?:\.(\d+))?/.exec(version);
  // A build from source without a version is treated as a new one.
  if (found === null) return false;
  const parts = [Number(found[1]), Number(found[2]), Number(found[3] ?? 0)];
  for (const [index, part] of parts.entries()) if (part !== limit[index]) return part < limit[index]!;
  return false;
}
