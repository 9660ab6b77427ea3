// Access control: the one check of bearer tokens for gRPC, Connect and REST. Only the texts of a refusal differ.
import { createHash, timingSafeEqual } from "node:crypto";
import { ServiceError } from "../common/errors.ts";
import type { Access } from "./service.ts";

export interface Secrets {
  /** Join token of the deployment. Empty or absent: services with access `token` are open. */
  readonly token?: string | undefined;
  /** API key of clients. Empty or absent: services with access `key` are open. */
  readonly apiKey?: string | undefined;
}

/** What a caller has proven on its connection: that it belongs to the deployment, or why it has not, or nothing. */
export type Proven = true | string | undefined;

/**
 * Returns why a call with this `authorization` header is refused, or undefined if it is allowed.
 *
 * @param proven Asked only if it matters.
 */
export type Gate = (
  access: Access,
  authorization: string | undefined,
  proven?: () => Proven,
) => ServiceError | undefined;

const WANTED: Record<Access, string> = {
  open: "",
  token: "Pass `authorization: Bearer <token>`, with the join token of this deployment (TANDEM_TOKEN).",
  key: "Pass `authorization: Bearer <key>`, with the API key of this server.",
};

/** If no bearer token was sent, and for another one. */
const GRPC_REFUSALS = {
  missing: (access: Access) => `No bearer token was sent. ${WANTED[access]}`,
  wrong: (access: Access) => `The credentials are wrong. ${WANTED[access]}`,
};

export function createGate(secrets: Secrets, refusals = GRPC_REFUSALS): Gate {
  const digests = { open: undefined, token: digest(secrets.token), key: digest(secrets.apiKey) };
  return (access, authorization, proven) => {
    const expected = digests[access];
    const standing = access === "token" ? proven?.() : undefined;
    if (standing === true || (standing === undefined && expected === undefined)) return undefined;
    if (standing !== undefined && (expected === undefined || authorization === undefined))
      return new ServiceError("unauthenticated", standing);
    const given = /^Bearer +(.*\S) *$/i.exec(authorization ?? "")?.[1];
    if (given === undefined) return new ServiceError("unauthenticated", refusals.missing(access));
    // Digests have equal length, so the comparison takes the same time for every input.
    if (timingSafeEqual(digest(given)!, expected!)) return undefined;
    return new ServiceError("unauthenticated", refusals.wrong(access));
  };
}

/** Undefined without a secret. */
function digest(secret: string | undefined): Buffer | undefined {
  return secret ? createHash("sha256").update(secret).digest() : undefined;
}
