// The error that the client throws.
import type { FailureCode } from "../../services/common/errors.ts";

export type TandemErrorKind =
  /** No connection could be made. */
  | "unreachable"
  /** A server answers, but not as a Tandem router does. */
  | "not_tandem"
  /** The API key or the join token is missing or wrong. */
  | "unauthenticated"
  /** The router answered with an error. */
  | "failed"
  /** The connection broke before the answer was complete. */
  | "broken";

type Details = Partial<Pick<TandemError, "status" | "code" | "requestId" | "retryAfterS" | "cause">>;

/**
 * The only error of the client's own. A call whose `signal` aborts throws the signal's reason instead, as `fetch` does.
 */
export class TandemError extends Error {
  override readonly name = "TandemError";
  readonly kind: TandemErrorKind;
  /** HTTP status of the answer. Undefined if there was no answer, and for calls of RouterService. */
  readonly status: number | undefined;
  /** Tandem's own code of the failure, if the answer carries one: calls of RouterService and over gRPC. */
  readonly code: FailureCode | undefined;
  /** `x-request-id` of the answer, for `tandem explain`. */
  readonly requestId: string | undefined;
  /** Seconds after which a retry makes sense. */
  readonly retryAfterS: number | undefined;

  constructor(kind: TandemErrorKind, message: string, details: Details = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.kind = kind;
    this.status = details.status;
    this.code = details.code;
    this.requestId = details.requestId;
    this.retryAfterS = details.retryAfterS;
  }
}

export function notTandem(url: string, status?: number, cause?: unknown): TandemError {
  return new TandemError("not_tandem", `${url} answers, but not as a Tandem router does.`, { status, cause });
}

/** Translates a connection's error. @param began Whether the answer had begun. */
export function connectionError(url: string, error: Error, began = false): TandemError {
  // fetch and Connect wrap the socket's error, and only the socket's error is specific.
  const cause = error.cause instanceof Error ? error.cause : error;
  const { code } = cause as NodeJS.ErrnoException;
  if (/Parse Error: Expected HTTP|HPE_INVALID_CONSTANT/.test(`${cause.message} ${code}`))
    return new TandemError("not_tandem", `${url} speaks gRPC, not HTTP/1.1.`, { cause });
  if (!began && code === "ECONNREFUSED") return new TandemError("unreachable", `Nothing listens at ${url}.`, { cause });
  if (!began && ["ENOTFOUND", "EAI_AGAIN", "EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT"].includes(code ?? ""))
    return new TandemError("unreachable", `${url} can't be reached: ${cause.message}.`, { cause });
  return new TandemError("broken", `The connection to ${url} broke: ${cause.message}.`, { cause });
}
