// A process of Tandem as a service in Consul, written so that an operator can read it in the UI, and read back.
import { fromJson, toJson, type JsonObject } from "@bufbuild/protobuf";
import { hostname } from "node:os";
import { InfoSchema, Role, type Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { TANDEM_COMMIT, TANDEM_VERSION } from "../common/version.ts";
import { entryProof, isProof } from "../rpc/proof.ts";
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

/** Its meta are the fields of Info under their names in instance.proto, save those that are written for people. */
export function instanceRecord(info: Info): ServiceRecord {
  const role = info.role === Role.PREFILL ? "prefill" : "decode";
  const modelRoot = info.modelRoot.length > META_VALUE_LIMIT ? "" : info.modelRoot;
  // What is unknown, 0 or the empty text, is left out.
  const fields = toJson(InfoSchema, { ...info, modelRoot }, { useProtoFieldName: true }) as JsonObject;
  const { instance_id: _id, slot_limit: _limit, started_unix_ms: _ms, ...facts } = fields;
  const meta = {
    ...facts,
    role,
    slots: info.slotLimit,
    started: new Date(Number(info.startedUnixMs)).toISOString(),
    host: hostname(),
  };
  return {
    id: info.instanceId,
    role,
    address: info.grpcAddress,
    grpcAddress: info.grpcAddress,
    meta: Object.fromEntries(Object.entries(meta).map(([key, value]) => [key, String(value)])),
    tags: [info.model, info.engine, info.connector].filter((tag) => tag !== "").map(tagOf),
  };
}

export function routerRecord(o: {
  readonly routerId: string;
  readonly restAddress: string;
  readonly grpcAddress: string;
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
      tandem_version: TANDEM_VERSION,
      tandem_commit: TANDEM_COMMIT,
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

/** `meta` with the proof that a member of the deployment wrote it. Consul shows it to everyone who may read services. */
export function provenMeta(
  id: string,
  meta: Readonly<Record<string, string>>,
  token: string | undefined,
): Readonly<Record<string, string>> {
  return token ? { ...meta, proof: entryProof(token, id, meta) } : meta;
}

/** Why an entry does not prove that a member of the deployment wrote it; undefined if it does. */
export function proofFault({ Service: { ID: id, Meta: meta } }: HealthEntry, token: string): string | undefined {
  const { proof, ...fields } = meta ?? {};
  if (proof === undefined)
    return "Its entry in Consul has no proof of the join token: it runs without one, or is a stranger.";
  if (isProof(Buffer.from(proof), Buffer.from(entryProof(token, id, fields)))) return undefined;
  return "The proof in its Consul entry is wrong: it has another join token, or a stranger changed the entry.";
}

/** @throws Error that says which field of the service's meta can't be used */
export function infoOf({ Service: { ID: id, Meta: meta } }: HealthEntry, role: "prefill" | "decode"): Info {
  const { slots = "0", started = "", ...facts } = meta ?? {};
  const fields: JsonObject = {
    ...facts,
    instance_id: id,
    role: role === "prefill" ? Role.PREFILL : Role.DECODE,
    slot_limit: slots,
    started_unix_ms: String(Date.parse(started) || 0),
  };
  return checkInfo(fromJson(InfoSchema, fields, { ignoreUnknownFields: true }));
}

/** What the checks have against the service; undefined where nothing. */
export function objectionOf({ Node: node, Checks: checks }: HealthEntry): Objection | undefined {
  // serfHealth reports that the agent is gone, not the service, which the router watches by itself.
  const failing = checks.filter(({ Status: status, CheckID: id }) => status === "critical" && id !== "serfHealth");
  const maintained = failing.find(({ CheckID: id }) => /^_(node_maintenance$|service_maintenance:)/.test(id));
  if (maintained !== undefined) {
    const what = maintained.CheckID === "_node_maintenance" ? `Its node ${node?.Node ?? ""}` : "It";
    const why = maintained.Notes || "no reason given";
    return { kind: "maintenance", reason: `${what} is in maintenance mode in Consul: ${why}` };
  }
  const [check] = failing;
  if (check === undefined) return undefined;
  const output = (check.Output ?? "").trim().slice(0, 300) || "no output yet";
  return { kind: "critical", reason: `Its check "${check.Name ?? check.CheckID}" fails in Consul: ${output}` };
}

/** Consul's DNS has no names for tags of other characters, and the agent warns of each. */
function tagOf(text: string): string {
  return text.replace(/[^A-Za-z0-9-]+/g, "-").slice(0, 63);
}
