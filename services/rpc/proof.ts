// What two processes compute from the join token, which itself never travels. identity.proto describes the exchange.
import { createHmac, hkdfSync, timingSafeEqual } from "node:crypto";

export const PROOF_BYTES = 32;
const VERSION = "tandem-proof-v1";

/** What both sides of one connection know before either has proven anything. */
export interface Transcript {
  readonly clientNonce: Uint8Array;
  readonly serverNonce: Uint8Array;
  /** host:port as the caller was given it. */
  readonly dialed: string;
  /** host:port that the connection reached. */
  readonly reached: string;
}

/** The roles keep a proof from being sent back as the other side's. */
export type ProofRole = "client" | "server" | "session";

const keys = new Map<string, Buffer>();

function keyOf(token: string, use: string): Buffer {
  const name = `${use} ${token}`;
  let key = keys.get(name);
  if (key === undefined) keys.set(name, (key = Buffer.from(hkdfSync("sha256", token, "", use, PROOF_BYTES))));
  return key;
}

export function proofOf(
  token: string,
  role: ProofRole,
  { clientNonce, serverNonce, dialed, reached }: Transcript,
): Buffer {
  const lines = [VERSION, role, base64url(clientNonce), base64url(serverNonce), dialed, reached];
  return createHmac("sha256", keyOf(token, VERSION)).update(lines.join("\n")).digest();
}

/** Takes the same time for every wrong proof. */
export function isProof(given: Uint8Array, expected: Uint8Array): boolean {
  return given.length === expected.length && timingSafeEqual(given, expected);
}

/**
 * Proof for an entry in a registry that others can write to. It covers every field, so that no field of a genuine entry
 * can be replaced.
 */
export function entryProof(token: string, id: string, fields: Readonly<Record<string, string>>): string {
  const sorted = Object.entries(fields).sort(([a], [b]) => (a < b ? -1 : 1));
  return createHmac("sha256", keyOf(token, "tandem-entry-v1"))
    .update(JSON.stringify([id, sorted]))
    .digest("base64url");
}

function base64url(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("base64url");
}
