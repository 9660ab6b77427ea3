// Who may call a service. The check is the same for gRPC and for Connect over HTTP/1.1.
import { createHash, timingSafeEqual } from "node:crypto";
import { ServiceError } from "../common/errors.ts";
import type { Access } from "./service.ts";

export interface Secrets {
  /** Join token of the deployment. Empty or absent: services with access `token` are open. */
  readonly token?: string | undefined;
  /** API key of clients. Empty or absent: services with access `key` are open. */
  readonly apiKey?: string | undefined;
}

/** Returns why a call with this `authorization` header is refused, or undefined where it may go on. */
export type Gate = (access: Access, authorization: string | undefined) => ServiceError | undefined;

export function createGate(secrets: Secrets): Gate {
  const digests = { open: undefined, token: digestOf(secrets.token), key: digestOf(secrets.apiKey) };
  return (access, authorization) => {
    const expected = digests[access];
    if (expected === undefined) return undefined;
    const given = /^Bearer +(\S+)$/i.exec(authorization ?? "")?.[1];
    // Digests have equal length, so the comparison takes the same time whatever was given.
    if (given !== undefined && timingSafeEqual(digest(given), expected)) return undefined;
    const wanted =
      access === "token"
        ? "`authorization: Bearer <token>`, with the join token of this deployment (TANDEM_TOKEN)"
        : "`authorization: Bearer <key>`, with the API key of this server";
    const problem = authorization === undefined ? "No credentials were sent" : "The credentials are wrong";
    return new ServiceError("unauthenticated", `${problem}. Pass ${wanted}.`);
  };
}

function digestOf(secret: string | undefined): Buffer | undefined {
  return secret === undefined || secret === "" ? undefined : digest(secret);
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
