// The caller's side of IdentityService: proves the join token on a new connection, and has the peer prove it too.
import { randomBytes } from "node:crypto";
import {
  type ProveRequest,
  ProveRequestSchema,
  ProveResponseSchema,
  IdentityService,
} from "#gen/tandem/identity/v1/identity_pb.js";
import { ServiceError } from "../common/errors.ts";
import { PROOF_BYTES, type Transcript, isProof, proofOf } from "./proof.ts";
import { decode, encode, methodPath } from "./service.ts";
import type { ThinCall, ThinHandlers } from "./thin-call.ts";

/** Header of each call on a connection that was proven: the session, in base64url. */
export const SESSION_HEADER = "tandem-session";

const PATH = methodPath(IdentityService, IdentityService.method.prove);

export interface Proving extends Pick<Transcript, "dialed" | "reached"> {
  readonly token: string;
  open(path: string, handlers: ThinHandlers): ThinCall;
  /** The peer is proven. Called at most once, as `onRefused` is. */
  onSession(session: string): void;
  onRefused(error: ServiceError): void;
}

export function provePeer({ token, dialed, reached, open, onSession, onRefused }: Proving): void {
  const clientNonce = randomBytes(PROOF_BYTES);
  let transcript: Transcript | undefined;
  let proven = false;
  const call = open(PATH, {
    onMessage(bytes) {
      const { step } = decode(ProveResponseSchema, bytes, "answer", "internal");
      if (proven) return;
      if (transcript === undefined && step.case === "nonce" && step.value.length === PROOF_BYTES) {
        transcript = { clientNonce, serverNonce: Buffer.from(step.value), dialed, reached };
        send({ case: "proof", value: proofOf(token, "client", transcript) });
      } else if (transcript !== undefined && step.case === "proof") {
        if (!isProof(step.value, proofOf(token, "server", transcript)))
          throw new ServiceError("unauthenticated", "The peer does not know the join token.");
        proven = true;
        call.halfClose();
        onSession(proofOf(token, "session", transcript).toString("base64url"));
      } else throw new ServiceError("internal", "The peer does not answer as IdentityService does.");
    },
    onEnd(error) {
      if (proven) return;
      if (error?.code === "failed_precondition") onRefused(new ServiceError("unauthenticated", error.message));
      else onRefused(error ?? new ServiceError("internal", "The peer ended the proof of identity early."));
    },
  });
  const send = (step: ProveRequest["step"]): void => void call.write(encode(ProveRequestSchema, { step }));
  send({ case: "hello", value: { $typeName: "tandem.identity.v1.Hello", nonce: clientNonce, dialed, reached } });
}
