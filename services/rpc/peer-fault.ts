// Why a peer can't be used, by what an operator does about it. For logs: the text may hold addresses.
import { asServiceError } from "../common/errors.ts";
import type { LossReason } from "./connection.ts";

export interface PeerFault {
  /**
   * `credentials`: give both sides the same token. `version`: it serves no such call. `address`: nothing that speaks gRPC
   * is there. `timeout`: it is there and doesn't answer. `refused`: it says no, in its own words.
   */
  readonly kind: "credentials" | "version" | "address" | "timeout" | "refused";
  readonly text: string;
}

/** Of what a call threw. A status without Tandem's own code is known by its name, which fromStatus keeps in the cause. */
export function peerFault(thrown: unknown): PeerFault {
  const { code, message, cause } = asServiceError(thrown);
  if (code === "unauthenticated" || code === "permission_denied") return { kind: "credentials", text: message };
  const reason = cause instanceof Error ? cause.message : "";
  const [, status, details] = /^gRPC status (\w+): ([^]*)/.exec(reason) ?? [];
  if (status === "UNIMPLEMENTED") return { kind: "version", text: details || message };
  // The connection's own failure has a cause, which a peer's word does not.
  if ((code === "instance_unavailable" || code === "instance_lost") && reason !== "")
    return { kind: "address", text: details ?? reason };
  return { kind: code === "deadline_exceeded" ? "timeout" : "refused", text: message };
}

/** Of a channel that is down. */
export function lossFault({
  because,
  cause,
}: {
  readonly because: LossReason;
  readonly cause: Error | undefined;
}): PeerFault {
  return {
    kind: because === "silent" ? "timeout" : "address",
    text: cause?.message ?? `The connection is ${because}.`,
  };
}
