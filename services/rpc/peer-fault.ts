// Why a peer can't be used, classified by the remedy. For logs: the text may contain addresses.
import { asServiceError } from "../common/errors.ts";
import type { LossReason } from "./connection.ts";

export interface PeerFault {
  /**
   * `credentials`: give both sides the same token. `version`: the peer doesn't serve the call. `address`: no gRPC
   * server is there. `timeout`: the server doesn't answer. `refused`: the server refuses, in its own words.
   */
  readonly kind: "credentials" | "version" | "address" | "timeout" | "refused";
  readonly text: string;
}

/**
 * The fault for a call's error. A status without Tandem's code is known by the name that fromStatus keeps in `cause`.
 */
export function peerFault(thrown: unknown): PeerFault {
  const { code, message, cause } = asServiceError(thrown);
  if (code === "unauthenticated" || code === "permission_denied") return { kind: "credentials", text: message };
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
  return {
    kind: because === "silent" ? "timeout" : "address",
    text: cause?.message ?? `The connection is ${because}.`,
  };
}
