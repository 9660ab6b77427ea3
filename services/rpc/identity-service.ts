// The server's side of IdentityService: which connections have proven the join token.
import { randomBytes } from "node:crypto";
import type { Socket } from "node:net";
import { TLSSocket } from "node:tls";
import {
  type ProveResponse,
  IdentityService,
  ProveRequestSchema,
  ProveResponseSchema,
} from "#gen/tandem/identity/v1/identity_pb.js";
import { ADDRESS, endAddress } from "../common/address.ts";
import { ServiceError, asServiceError } from "../common/errors.ts";
import type { Proven } from "./access.ts";
import { PROOF_BYTES, type Transcript, isProof, proofOf } from "./proof.ts";
import { type RawCall, type RpcService, decode, defineService, encode } from "./service.ts";
import { CERTIFICATE_FAULTS, type Tls } from "./tls.ts";

export interface IdentityOptions {
  /** Empty or absent: nothing can be proven. */
  readonly token?: string | undefined;
  /** Callers prove themselves by their certificates. */
  readonly tls?: Tls | undefined;
  /** The addresses, beside those of the connection itself, under which others may dial this server. */
  addresses(): readonly (string | undefined)[];
  socketOf(peer: string): Socket | undefined;
  /** Called for each proof that failed. */
  onRefused(call: RawCall, error: ServiceError): void;
}

export interface Identity {
  readonly service: RpcService;
  /**
   * What a caller has proven on its connection.
   *
   * @param peer As in RawCall. @param session The header of that name.
   */
  proven(peer: string, session: string | undefined): Proven;
}

export function createIdentity({ token, tls, addresses, socketOf, onRefused }: IdentityOptions): Identity {
  const sessions = new WeakMap<Socket, Buffer>();

  function prove(call: RawCall): void {
    const socket = socketOf(call.peer);
    let transcript: Transcript | undefined;
    const refuse = (thrown: unknown): void => {
      const error = asServiceError(thrown);
      onRefused(call, error);
      call.fail(error);
    };
    const answer = (step: ProveResponse["step"]): void => void call.write(encode(ProveResponseSchema, { step }));
    call.onHalfClose = () => call.end();
    call.onMessage = (bytes) => {
      try {
        const { step } = decode(ProveRequestSchema, bytes, "request", "invalid_request");
        if (!token || socket === undefined)
          throw new ServiceError("failed_precondition", "This server has no join token, so it can't prove anything.");
        if (transcript === undefined && step.case === "hello") {
          const { nonce, dialed, reached } = step.value;
          if (nonce.length !== PROOF_BYTES || !ADDRESS.test(dialed) || !ADDRESS.test(reached))
            throw new ServiceError("invalid_request", "The hello is malformed.");
          if (!addresses().includes(dialed) && reached !== endAddress(socket, "local"))
            throw new ServiceError("permission_denied", NOT_OWN);
          transcript = { clientNonce: nonce, serverNonce: randomBytes(PROOF_BYTES), dialed, reached };
          answer({ case: "nonce", value: transcript.serverNonce });
        } else if (transcript !== undefined && step.case === "proof") {
          if (!isProof(step.value, proofOf(token, "client", transcript)))
            throw new ServiceError("unauthenticated", TOKENS_DIFFER);
          sessions.set(socket, proofOf(token, "session", transcript));
          answer({ case: "proof", value: proofOf(token, "server", transcript) });
          call.end();
        } else throw new ServiceError("invalid_request", "The messages of a proof are a hello and a proof.");
      } catch (thrown) {
        refuse(thrown);
      }
    };
  }

  /** Judged once for each connection: a certificate that expires later doesn't end it. */
  const verdicts = new WeakMap<Socket, true | string>();
  function certified(peer: string, own: Tls): Proven {
    const socket = socketOf(peer);
    if (!(socket instanceof TLSSocket)) return `The caller's ${CERTIFICATE_FAULTS["no certificate"]}`;
    let verdict = verdicts.get(socket);
    if (verdict === undefined) {
      const fault = own.callerFault(socket);
      verdict = fault === undefined ? true : `The caller's ${CERTIFICATE_FAULTS[fault]}`;
      verdicts.set(socket, verdict);
    }
    return verdict;
  }

  return {
    service: defineService(IdentityService, {}, { access: "open", raw: { prove } }),
    proven(peer, session) {
      if (tls !== undefined) return certified(peer, tls);
      if (session === undefined) return undefined;
      const socket = socketOf(peer);
      const expected = socket && sessions.get(socket);
      return expected !== undefined && isProof(Buffer.from(session, "base64url"), expected) ? true : OTHER_CONNECTION;
    },
  };
}

const TOKENS_DIFFER = "The join tokens differ. Start both with the same one (TANDEM_TOKEN).";
const OTHER_CONNECTION =
  "Nothing was proven on this connection: does a proxy share connections between callers? Connect directly, or use TLS.";
const NOT_OWN =
  "The caller dialed an address that is not this server's. If the address is right, start this server with it as " +
  "--grpc.advertise.";
