// A process of Tandem as a service in Consul, written so that an operator can read it in the UI, and read back.
import { create } from "@bufbuild/protobuf";
import { hostname } from "node:os";
import { InfoSchema, Role, type Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { checkInfo } from "./check-info.ts";
import type { Objection } from "./registry.ts";

export type ServiceRole = "router" | "prefill" | "decode";

const META_VALUE_LIMIT = 512;

/** What is registered, before the checks. */
export interface ServiceRecord {
  readonly id: string;
  readonly role: ServiceRole;
  /** host:port of the service, as others dial it. */
  readonly address: string;
  /** host:port of its grpc.health.v1. */
  readonly grpcAddress: string;
  /** Consul's limits: 64 pairs, keys of 128 characters A-Za-z0-9_-, values of META_VALUE_LIMIT. */
  readonly meta: Readonly<Record<string, string>>;
  readonly tags: readonly string[];
}

export function serviceName(prefix: string, role: ServiceRole): string {
  return `${prefix}-${role}`;
}

export function instanceRecord(info: Info): ServiceRecord {
  const role = info.role === Role.PREFILL ? "prefill" : "decode";
  const meta: Record<string, string> = {
    role,
    model: info.model,
    max_model_len: String(info.maxModelLen),
    connector: info.connector,
    kv_address: info.kvAddress,
    grpc_address: info.grpcAddress,
    engine: info.engine,
    engine_version: info.engineVersion,
    block_size: String(info.blockSize),
    tp_size: String(info.tpSize),
    dtype: info.dtype,
    model_root: info.modelRoot.length > META_VALUE_LIMIT ? "" : info.modelRoot,
    slots: String(info.slotLimit),
    tandem_version: info.tandemVersion,
    tandem_commit: info.tandemCommit,
    started: new Date(Number(info.startedUnixMs)).toISOString(),
    pid: String(info.pid),
    host: hostname(),
  };
  // "0" and the empty text mean "unknown" and are left out.
  for (const key in meta) if (meta[key] === "" || (meta[key] === "0" && key !== "pid")) delete meta[key];
  return {
    id: info.instanceId,
    role,
    address: info.grpcAddress,
    grpcAddress: info.grpcAddress,
    meta,
    tags: [info.model, info.engine, info.connector].filter((tag) => tag !== "").map(tagOf),
  };
}

export function routerRecord(o: {
  readonly routerId: string;
  readonly restAddress: string;
  readonly grpcAddress: string;
  readonly tandemVersion: string;
  readonly tandemCommit: string;
  readonly startedUnixMs: number;
}): ServiceRecord {
  return {
    id: o.routerId,
    role: "router",
    // Who looks for a router in Consul's DNS wants the OpenAI API.
    address: o.restAddress,
    grpcAddress: o.grpcAddress,
    meta: {
      role: "router",
      rest_address: o.restAddress,
      grpc_address: o.grpcAddress,
      tandem_version: o.tandemVersion,
      tandem_commit: o.tandemCommit,
      started: new Date(o.startedUnixMs).toISOString(),
      pid: String(process.pid),
      host: hostname(),
    },
    tags: ["openai", "grpc"],
  };
}

/** One element of what /v1/health/service/:name answers, as far as it is read here. */
export interface HealthEntry {
  readonly Node?: { readonly Node?: string };
  readonly Service: {
    readonly ID: string;
    /** Goes up when the service is registered with anything changed. */
    readonly ModifyIndex: number;
    readonly Meta?: Readonly<Record<string, string>> | null;
  };
  readonly Checks: readonly HealthCheck[];
}

interface HealthCheck {
  readonly CheckID: string;
  readonly Name?: string;
  readonly Status: string;
  readonly Output?: string;
  readonly Notes?: string;
}

/** @throws ServiceError saying which field of the service's meta can't be used */
export function infoOf(entry: HealthEntry, role: "prefill" | "decode"): Info {
  const meta = entry.Service.Meta ?? {};
  const count = (key: string): number => {
    const value = Number(meta[key] ?? 0);
    return Number.isInteger(value) && value >= 0 && value < 2 ** 32 ? value : 0;
  };
  const startedMs = Date.parse(meta["started"] ?? "");
  return checkInfo(
    create(InfoSchema, {
      instanceId: entry.Service.ID,
      role: role === "prefill" ? Role.PREFILL : Role.DECODE,
      model: meta["model"] ?? "",
      maxModelLen: count("max_model_len"),
      connector: meta["connector"] ?? "",
      kvAddress: meta["kv_address"] ?? "",
      grpcAddress: meta["grpc_address"] ?? "",
      engine: meta["engine"] ?? "",
      engineVersion: meta["engine_version"] ?? "",
      tandemVersion: meta["tandem_version"] ?? "",
      tandemCommit: meta["tandem_commit"] ?? "",
      blockSize: count("block_size"),
      tpSize: count("tp_size"),
      dtype: meta["dtype"] ?? "",
      modelRoot: meta["model_root"] ?? "",
      slotLimit: count("slots"),
      startedUnixMs: BigInt(Number.isFinite(startedMs) ? startedMs : 0),
      pid: count("pid"),
    }),
  );
}

/** What the checks have against the service; undefined where nothing. */
export function objectionOf(entry: HealthEntry): Objection | undefined {
  let critical: Objection | undefined;
  for (const check of entry.Checks) {
    if (check.Status !== "critical") continue;
    if (check.CheckID === "_node_maintenance" || check.CheckID.startsWith("_service_maintenance:")) {
      const what = check.CheckID === "_node_maintenance" ? `Its node ${entry.Node?.Node ?? ""}` : "It";
      return {
        kind: "maintenance",
        reason: `${what} is in maintenance mode in Consul: ${check.Notes || "no reason given"}`,
      };
    }
    // It says that the agent is gone, not the service, which the router watches by itself.
    if (check.CheckID === "serfHealth") continue;
    const output = (check.Output ?? "").trim().slice(0, 300);
    critical ??= {
      kind: "critical",
      reason: `Its check "${check.Name ?? check.CheckID}" fails in Consul: ${output || "no output yet"}`,
    };
  }
  return critical;
}

/** Consul's DNS has no names for tags of other characters, and the agent warns of each. */
function tagOf(text: string): string {
  return text.replace(/[^A-Za-z0-9-]+/g, "-").slice(0, 63);
}
