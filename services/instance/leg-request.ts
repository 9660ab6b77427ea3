// The checks that both roles make on a leg before it touches anything. The router made them too; an instance
// trusts no caller with text that becomes part of its engine's request id.
import type { Reserve } from "#gen/tandem/decode/v1/decode_pb.js";
import type { PrefillRequest } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { ServiceError } from "../common/errors.ts";
import { scanObject, duplicateKey, type Member } from "../common/json-body.ts";
import type { LiveEngine } from "../engine/engine.ts";
import type { LegSpec } from "../kv/connector.ts";
import type { InstanceRole } from "./config.ts";
import type { InstanceParts } from "./instance.ts";

const LEG_ID = /^[0-9a-f]{32}$/;
const KV_ADDRESS = /^[A-Za-z0-9.-]+:\d{1,5}$/;

/**
 * Checks a leg and whether this instance can take it. Reserves nothing.
 *
 * @throws ServiceError `invalid_request`, `instance_unavailable` or `instance_busy`.
 */
export function admitLeg(
  { connector: { traits }, status, supervisor }: InstanceParts,
  role: InstanceRole,
  leg: PrefillRequest | Reserve,
  sampleIndex: number,
): { readonly engine: LiveEngine; readonly spec: LegSpec } {
  const { legId, promptIndex, prefillKvAddress, decodeKvAddress } = leg;
  const checked = checkBody(leg);
  const partner = role === "prefill" ? "decode" : "prefill";
  checkKvAddress(`${partner}_kv_address`, leg[`${partner}KvAddress`], traits.decodeFirst);
  status.admit();
  const engine = supervisor.live;
  if (engine === undefined) throw new ServiceError("instance_unavailable", "The instance's engine is not running.");
  // Under an id that the partner doesn't look for, the KV would never be claimed, and vLLM would wait forever.
  const known = leg[`${role}KvAddress`];
  if (traits.pairedId && known !== "" && known !== engine.kvAddress) {
    throw new ServiceError("instance_unavailable", "The instance's engine was restarted.");
  }
  const own = { [`${role}KvAddress`]: traits.pairedId ? engine.kvAddress : "" };
  return { engine, spec: { ...checked, legId, promptIndex, sampleIndex, prefillKvAddress, decodeKvAddress, ...own } };
}

function checkBody(leg: PrefillRequest | Reserve): Pick<LegSpec, "path" | "body" | "members"> {
  if (!LEG_ID.test(leg.legId)) throw invalid("leg_id", "must be 32 hex digits");
  if (leg.path !== "/v1/completions" && leg.path !== "/v1/chat/completions") {
    throw invalid("path", "must be /v1/completions or /v1/chat/completions");
  }
  const body = Buffer.from(leg.body);
  let members: Member[];
  try {
    members = scanObject(body);
  } catch (error) {
    throw invalid("body", `is not a JSON object: ${(error as Error).message}`);
  }
  const twice = duplicateKey(members);
  if (twice !== undefined) throw invalid("body", `has the field ${JSON.stringify(twice)} twice`);
  return { path: leg.path, body, members };
}

/** The address must be given exactly if the connector requires it. */
function checkKvAddress(field: string, address: string, wanted: boolean): void {
  if (wanted && !KV_ADDRESS.test(address)) throw invalid(field, "must be host:port for this connector");
  if (!wanted && address !== "") throw invalid(field, "must be empty for this connector");
}

/** Estimates a prompt's tokens from its body's size, before the engine counts. English has about 4 bytes a token. */
export function estimatePromptTokens({ body }: Pick<LegSpec, "body">): number {
  return Math.ceil(body.length / 4);
}

export function invalid(field: string, why: string): ServiceError {
  return new ServiceError("invalid_request", `${field} ${why}.`, { param: field });
}
