// The checks that both roles make on a leg before it touches anything. The router made them too; an instance
// trusts no caller with text that becomes part of its engine's request id.
import { ServiceError } from "../common/errors.ts";
import { scanObject, duplicateKey, type Member } from "../common/json-body.ts";
import type { LegPath } from "../kv/connector.ts";
import { KV_ADDRESS, LEG_ID } from "../kv/p2p.ts";

export interface LegFields {
  readonly legId: string;
  readonly path: string;
  readonly body: string;
  readonly promptIndex?: number | undefined;
}

export interface CheckedLeg {
  readonly path: LegPath;
  readonly body: Buffer;
  readonly members: readonly Member[];
}

/** @throws ServiceError `invalid_request`. */
export function checkLeg(leg: LegFields): CheckedLeg {
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

/** @throws ServiceError `invalid_request` unless the address is given exactly if the connector requires it. */
export function checkKvAddress(field: string, address: string, wanted: boolean): void {
  if (wanted && !KV_ADDRESS.test(address)) throw invalid(field, "must be host:port for this connector");
  if (!wanted && address !== "") throw invalid(field, "must be empty for this connector");
}

/** Estimates a prompt's tokens from its body's size, before the engine counts. English has about 4 bytes a token. */
export function estimatePromptTokens(bodyBytes: number): number {
  return Math.ceil(bodyBytes / 4);
}

function invalid(field: string, why: string): ServiceError {
  return new ServiceError("invalid_request", `${field} ${why}.`, { param: field });
}
