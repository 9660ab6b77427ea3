// ServiceError as Connect's error: the same code and the same details as over gRPC. Loads Connect; see
// connect-handler.ts.
import { type Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema, RetryInfoSchema } from "#gen/google/rpc/error_details_pb.js";
import type { ServiceError } from "../common/errors.ts";
import { GRPC_CODES, errorDetails } from "./errors-wire.ts";

export function toConnectError(error: ServiceError): ConnectError {
  const { info, retry } = errorDetails(error);
  // Connect and gRPC number the codes alike.
  const code: Code = GRPC_CODES[error.failure.grpc];
  return new ConnectError(error.message, code, undefined, [
    { desc: ErrorInfoSchema, value: info },
    ...(retry === undefined ? [] : [{ desc: RetryInfoSchema, value: retry }]),
  ]);
}
