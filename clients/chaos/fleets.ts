// What a run can be made of: each way in which Tandem ships. Engines are started by their instances (launched), or run
// by themselves (attached); the KV moves by any connector. What passes for vLLM is the stand-in of services/tiny-engine.
import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import type { CONNECTOR_NAMES } from "../../services/kv/index.ts";
import type { FaultName } from "./schedule.ts";

export interface Fleet {
  readonly engine: "sim" | "embedded" | "stand-in";
  readonly connector: (typeof CONNECTOR_NAMES)[number];
  readonly attached: boolean;
}

export const FLEETS = {
  sim: { engine: "sim", connector: "p2p-zmq", attached: false },
  embedded: { engine: "embedded", connector: "p2p-zmq", attached: false },
  "sim-attached": { engine: "sim", connector: "p2p-zmq", attached: true },
  "p2p-nccl": { engine: "stand-in", connector: "p2p-nccl", attached: false },
  "p2p-nccl-attached": { engine: "stand-in", connector: "p2p-nccl", attached: true },
  nixl: { engine: "stand-in", connector: "nixl", attached: false },
  "nixl-attached": { engine: "stand-in", connector: "nixl", attached: true },
} as const satisfies Readonly<Record<string, Fleet>>;

export type FleetName = keyof typeof FLEETS;
export const FLEET_NAMES = Object.keys(FLEETS) as FleetName[];

/** Arguments of node that run the stand-in of the same build as this file. */
export const STAND_IN: readonly string[] = [
  ...process.execArgv,
  fileURLToPath(new URL(`../../services/tiny-engine/stand-in${extname(import.meta.url)}`, import.meta.url)),
];

/** Served by every engine. */
export const MODEL = "tandem-chaos";

/** The proxy stands on the link that the connector dials by an address of ours. NIXL's is known to the engines alone. */
export function hasKvLink({ connector }: Fleet): boolean {
  return connector !== "nixl";
}

/** Faults that can't be made on this fleet. */
export function impossibleOn(fleet: Fleet): readonly FaultName[] {
  return hasKvLink(fleet) ? [] : ["drop-kv-link", "halve-kv-link"];
}

/**
 * Flags of an instance's engine.
 *
 * @param decodeMs Time that a simulated engine takes for one token.
 */
export function engineFlags({ engine, connector }: Fleet, decodeMs: number): string[] {
  if (engine === "stand-in") return ["--inject", "--sim-decode-ms", String(decodeMs)];
  const pace = engine === "sim" ? [`--sim.decode_ms_per_token=${decodeMs}`] : [];
  // As vLLM 0.23 with P2P NCCL: missing KV hangs engines permanently, and an unpaired request kills them.
  return [
    ...pace,
    "--inject",
    "--fault=poison",
    ...(engine === "sim" && connector === "p2p-zmq" ? ["--fault=upstream"] : []),
  ];
}

/** Arguments of node that start an engine by itself. */
export function engineCommand(
  fleet: Fleet,
  role: "prefill" | "decode",
  o: {
    readonly tandem: readonly string[];
    readonly httpPort: number;
    readonly kvHost: string;
    readonly kvPort: number;
  },
  flags: readonly string[],
): { readonly argv: readonly string[]; readonly env: Readonly<Record<string, string>> } {
  const kv = `${o.kvHost}:${o.kvPort}`;
  if (fleet.engine !== "stand-in") {
    const kind = fleet.engine === "sim" ? "--sim" : "--no-sim";
    const own = [kind, `--role=${role}`, `--connector=${fleet.connector}`, `--model.name=${MODEL}`];
    return {
      argv: [...o.tandem, "engine", ...own, `--listen=127.0.0.1:${o.httpPort}`, `--kv.listen=${kv}`, ...flags],
      env: {},
    };
  }
  const isP2p = fleet.connector === "p2p-nccl";
  const transfer = {
    kv_connector: isP2p ? "P2pNcclConnector" : "NixlConnector",
    kv_role: role === "prefill" ? "kv_producer" : "kv_consumer",
    kv_port: String(o.kvPort),
    kv_connector_extra_config: { http_port: String(o.httpPort) },
  };
  const words = ["--host", "127.0.0.1", "--port", String(o.httpPort), "--served-model-name", MODEL];
  return {
    argv: [
      ...STAND_IN,
      ...["serve", MODEL, ...words],
      ...["--kv-transfer-config", JSON.stringify(transfer), "--enforce-eager"],
      ...flags,
    ],
    env: {
      VLLM_HOST_IP: o.kvHost,
      VLLM_NIXL_SIDE_CHANNEL_HOST: o.kvHost,
      VLLM_NIXL_SIDE_CHANNEL_PORT: String(o.kvPort),
      VLLM_DISABLE_REQUEST_ID_RANDOMIZATION: "1",
    },
  };
}
