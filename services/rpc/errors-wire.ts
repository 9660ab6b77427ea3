// ServiceError to gRPC status and back. A code survives the wire as google.rpc.ErrorInfo; only a status with an
// ErrorInfo is trusted as Tandem's own, because proxies and libraries make statuses too.
// Format: https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto
import { type DescMessage, type Message, create, fromBinary } from "@bufbuild/protobuf";
import { anyPack, anyUnpack } from "@bufbuild/protobuf/wkt";
import { type ErrorInfo, ErrorInfoSchema, type RetryInfo, RetryInfoSchema } from "#gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "#gen/google/rpc/status_pb.js";
import { FAILURES, type FailureCode, GRPC_CODES, ServiceError, type ServiceErrorOptions } from "../common/errors.ts";
import { encode } from "./service.ts";

const DOMAIN = "tandem";
export const DETAILS_HEADER = "grpc-status-details-bin";

// Trailers count as headers, and a peer may refuse more than 64 KiB of them.
const MESSAGE_LIMIT_CHARS = 4096;
const ENGINE_BODY_LIMIT_BYTES = 16_384;

/** The details of `error` as messages, the same for gRPC and Connect. */
export function errorDetails(error: ServiceError): { readonly desc: DescMessage; readonly value: Message }[] {
  const metadata: Record<string, string> = {};
  if (error.param !== undefined) metadata["param"] = error.param;
  if (error.engineAnswer !== undefined) {
    const { status, body } = error.engineAnswer;
    metadata["engine_status"] = String(status);
    // Half a JSON body is useless, so a body that is too long is left out. The message still says what happened.
    if (Buffer.byteLength(body) <= ENGINE_BODY_LIMIT_BYTES) metadata["engine_body"] = body;
  }
  const info = create(ErrorInfoSchema, { reason: error.code, domain: DOMAIN, metadata });
  const details = [{ desc: ErrorInfoSchema as DescMessage, value: info as Message }];
  if (error.retryAfterS === undefined) return details;
  const seconds = Math.floor(error.retryAfterS);
  const nanos = Math.round((error.retryAfterS - seconds) * 1e9);
  const retry = create(RetryInfoSchema, { retryDelay: { seconds: BigInt(seconds), nanos } });
  return [...details, { desc: RetryInfoSchema, value: retry }];
}

/** @returns `detailsBin` is a google.rpc.Status, for `grpc-status-details-bin`. */
export function toStatus(error: ServiceError): { code: number; message: string; detailsBin: Buffer } {
  const code = GRPC_CODES[error.failure.grpc];
  // A lone surrogate would make the percent-encoding of `grpc-message` throw; Buffer replaces it.
  const message = Buffer.from(error.message.slice(0, MESSAGE_LIMIT_CHARS)).toString();
  const details = errorDetails(error).map(({ desc, value }) => anyPack(desc, value));
  return { code, message, detailsBin: encode(StatusSchema, { code, message, details }) };
}

/**
 * The error for a gRPC status.
 *
 * @param message Already percent-decoded.
 * @param answered Whether the peer had begun to answer: UNAVAILABLE then means that a running call was lost.
 */
export function fromStatus(code: number, message: string, detailsBin?: Uint8Array, answered = false): ServiceError {
  const own = detailsBin === undefined ? undefined : readDetails(message, detailsBin);
  if (own !== undefined) return own;
  // Foreign text may contain addresses, so it only goes into the log.
  const cause = new Error(`gRPC status ${codeName(code)}: ${message}`);
  switch (code) {
    case GRPC_CODES.UNAVAILABLE:
      return answered
        ? new ServiceError("instance_lost", "The connection to the instance broke.", { cause })
        : new ServiceError("instance_unavailable", "The instance can't be reached.", { cause });
    case GRPC_CODES.DEADLINE_EXCEEDED:
      return new ServiceError("deadline_exceeded", "The call did not end in time.", { cause });
    case GRPC_CODES.CANCELLED:
      return new ServiceError("cancelled", "The call was cancelled.", { cause });
    default:
      return new ServiceError("internal", `The peer answered with gRPC status ${codeName(code)}.`, { cause });
  }
}

/** The error inside a google.rpc.Status that Tandem made. */
function readDetails(message: string, detailsBin: Uint8Array): ServiceError | undefined {
  let info: ErrorInfo | undefined;
  let retry: RetryInfo | undefined;
  try {
    for (const any of fromBinary(StatusSchema, detailsBin).details) {
      info ??= anyUnpack(any, ErrorInfoSchema);
      retry ??= anyUnpack(any, RetryInfoSchema);
    }
  } catch {
    return undefined; // The bytes are not a Tandem error: an ordinary foreign status.
  }
  return info === undefined ? undefined : fromDetails(message, info, retry);
}

/** Undefined if `info` is not Tandem's, or comes from a version with more codes. */
export function fromDetails(message: string, info: ErrorInfo, retry: RetryInfo | undefined): ServiceError | undefined {
  if (info.domain !== DOMAIN || !Object.hasOwn(FAILURES, info.reason)) return undefined;
  const { param, engine_status: status, engine_body: body } = info.metadata;
  const delay = retry?.retryDelay;
  const options: ServiceErrorOptions = {
    ...(param === undefined ? {} : { param }),
    ...(status === undefined || body === undefined ? {} : { engineAnswer: { status: Number(status), body } }),
    ...(delay === undefined ? {} : { retryAfterS: Number(delay.seconds) + delay.nanos / 1e9 }),
  };
  return new ServiceError(info.reason as FailureCode, message, options);
}

/** Percent-decodes `grpc-message`. Malformed text is taken as it is, as the gRPC specification asks. */
export function decodeMessage(text: string): string {
  if (!text.includes("%")) return text;
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function codeName(code: number): string {
  return Object.entries(GRPC_CODES).find(([, value]) => value === code)?.[0] ?? String(code);
}
