// Every failure that Tandem may report, and the one class that carries it.
// Three boundaries read the table and nothing else decides a status: router/rest (OpenAI error body), rpc (gRPC
// status), router/relay (retry). docs/errors.md has the same table for people.

/** Numbers of the gRPC status codes, which Connect shares. OK is 0. */
export const GRPC_CODES = {
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  OUT_OF_RANGE: 11,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
  UNAUTHENTICATED: 16,
} as const;

/**
 * The retry that the router may make before the first byte has reached the client.
 * `elsewhere`: the same leg on another instance. `both legs`: a new pair with a fresh leg id.
 */
export type Retry = "never" | "elsewhere" | "both legs";

export interface Failure {
  readonly http: number;
  readonly grpc: keyof typeof GRPC_CODES;
  readonly retry: Retry;
  /** `type` of the OpenAI error body, as vLLM spells it. */
  readonly type: string;
}

/** When each happens, and what to do about it: docs/errors.md. */
export const FAILURES = {
  invalid_request: { http: 400, grpc: "INVALID_ARGUMENT", retry: "never", type: "BadRequestError" },
  engine_refused: { http: 400, grpc: "INVALID_ARGUMENT", retry: "never", type: "BadRequestError" },
  not_supported: { http: 400, grpc: "INVALID_ARGUMENT", retry: "never", type: "BadRequestError" },
  body_too_large: { http: 413, grpc: "INVALID_ARGUMENT", retry: "never", type: "BadRequestError" },
  unauthenticated: { http: 401, grpc: "UNAUTHENTICATED", retry: "never", type: "AuthenticationError" },
  permission_denied: { http: 403, grpc: "PERMISSION_DENIED", retry: "never", type: "PermissionDeniedError" },
  model_not_found: { http: 404, grpc: "NOT_FOUND", retry: "never", type: "NotFoundError" },
  not_found: { http: 404, grpc: "NOT_FOUND", retry: "never", type: "NotFoundError" },
  method_not_allowed: { http: 405, grpc: "UNIMPLEMENTED", retry: "never", type: "BadRequestError" },
  failed_precondition: { http: 409, grpc: "FAILED_PRECONDITION", retry: "never", type: "ConflictError" },
  queue_full: { http: 429, grpc: "RESOURCE_EXHAUSTED", retry: "elsewhere", type: "RateLimitError" },
  instance_busy: { http: 503, grpc: "RESOURCE_EXHAUSTED", retry: "elsewhere", type: "ServiceUnavailableError" },
  no_instance: { http: 503, grpc: "UNAVAILABLE", retry: "never", type: "ServiceUnavailableError" },
  instance_unavailable: { http: 503, grpc: "UNAVAILABLE", retry: "elsewhere", type: "ServiceUnavailableError" },
  instance_lost: { http: 502, grpc: "UNAVAILABLE", retry: "both legs", type: "InternalServerError" },
  leg_id_reused: { http: 500, grpc: "ALREADY_EXISTS", retry: "both legs", type: "InternalServerError" },
  kv_transfer_failed: { http: 502, grpc: "ABORTED", retry: "both legs", type: "InternalServerError" },
  engine_failed: { http: 502, grpc: "INTERNAL", retry: "both legs", type: "InternalServerError" },
  query_of_death: { http: 500, grpc: "INTERNAL", retry: "never", type: "InternalServerError" },
  reservation_expired: { http: 504, grpc: "DEADLINE_EXCEEDED", retry: "both legs", type: "TimeoutError" },
  leg_stalled: { http: 504, grpc: "DEADLINE_EXCEEDED", retry: "both legs", type: "TimeoutError" },
  deadline_exceeded: { http: 504, grpc: "DEADLINE_EXCEEDED", retry: "never", type: "TimeoutError" },
  cancelled: { http: 499, grpc: "CANCELLED", retry: "never", type: "CancelledError" },
  internal: { http: 500, grpc: "INTERNAL", retry: "never", type: "InternalServerError" },
} as const satisfies Record<string, Failure>;

export type FailureCode = keyof typeof FAILURES;

/** A response of the engine that the client may see unchanged. */
export interface EngineAnswer {
  readonly status: number;
  /** JSON text, `{"error":{...}}`. */
  readonly body: string;
}

export interface ServiceErrorOptions {
  /** For the log. Never shown to a client. */
  readonly cause?: unknown;
  /** Field of the request that is to blame. */
  readonly param?: string;
  /** Seconds after which the caller may try again. */
  readonly retryAfterS?: number;
  readonly engineAnswer?: EngineAnswer;
}

/**
 * The only class thrown on purpose. `message` may reach a client: it says what happened and what to do about it,
 * without internal addresses or ids.
 */
export class ServiceError extends Error {
  readonly code: FailureCode;
  readonly param: string | undefined;
  readonly retryAfterS: number | undefined;
  readonly engineAnswer: EngineAnswer | undefined;

  constructor(code: FailureCode, message: string, options: ServiceErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "ServiceError";
    this.code = code;
    this.param = options.param;
    this.retryAfterS = options.retryAfterS;
    this.engineAnswer = options.engineAnswer;
  }

  get failure(): Failure {
    return FAILURES[this.code];
  }
}

/** `thrown` as a ServiceError. Anything not thrown on purpose is a bug: `internal`, with the original as its cause. */
export function asServiceError(thrown: unknown): ServiceError {
  if (thrown instanceof ServiceError) return thrown;
  return new ServiceError("internal", "An internal error occurred. The server's log has the details.", {
    cause: thrown,
  });
}
