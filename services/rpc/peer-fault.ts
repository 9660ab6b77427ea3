// Why a peer can't be used, classified by the remedy. For logs: the text may contain addresses.
import { ServiceError, asServiceError } from "../common/errors.ts";
import type { LossReason } from "./connection.ts";
import { CERTIFICATE_FAULTS, type CertificateFault } from "./tls.ts";

export interface PeerFault {
  /**
   * `credentials`: give both sides the same token. Those of certificates: as they say. `version`: the peer doesn't serve the call. `address`: no gRPC
   * server is there. `timeout`: the server doesn't answer. `refused`: the server refuses, in its own words.
   */
  readonly kind: CertificateFault | "credentials" | "version" | "address" | "timeout" | "refused";
  readonly text: string;
}

/**
 * The fault for a call's error. A status without Tandem's code is known by the name that fromStatus keeps in `cause`.
 */
export function peerFault(thrown: unknown): PeerFault {
  const error = asServiceError(thrown);
  // A call on a connection that was not proven fails for the same reason as the proof.
  if (error.cause instanceof ServiceError) return peerFault(error.cause);
  const { code, message, cause } = error;
  if (code === "unauthenticated" || code === "permission_denied")
    return { kind: certificateFaultIn(message) ?? "credentials", text: message };
  const reason = cause instanceof Error ? cause.message : "";
  const [, status, details] = /^gRPC status (\w+): ([^]*)/.exec(reason) ?? [];
  if (status === "UNIMPLEMENTED" || code === "method_not_allowed") return { kind: "version", text: details || message };
  // A failure of the connection has a cause; an answer of the peer does not.
  if ((code === "instance_unavailable" || code === "instance_lost") && reason !== "")
    return { kind: "address", text: details ?? reason };
  return { kind: code === "deadline_exceeded" ? "timeout" : "refused", text: message };
}

/** The fault of a channel that is down. */
export function lossFault({ because, cause }: { because: LossReason; cause: Error | undefined }): PeerFault {
  if (because === "untrusted") return peerFault(cause);
  return {
    kind: because === "silent" ? "timeout" : "address",
    text: cause?.message ?? `The connection is ${because}.`,
  };
}

function certificateFaultIn(message: string): CertificateFault | undefined {
  const faults = Object.entries(CERTIFICATE_FAULTS) as [CertificateFault, string][];
  return faults.find(([, text]) => message.endsWith(text))?.[0];
}
