// Typed calls of one service over Connect or gRPC, with the errors of this client.
import {
  Code,
  ConnectError,
  createClient,
  type CallOptions,
  type Client,
  type Interceptor,
  type Transport,
} from "@connectrpc/connect";
import type { DescService } from "@bufbuild/protobuf";
import { ErrorInfoSchema, RetryInfoSchema } from "#gen/google/rpc/error_details_pb.js";
import { fromDetails } from "../../services/rpc/errors-wire.ts";
import { connectionError, notTandem, TandemError } from "./errors.ts";

/**
 * One method for each call of `service`; streams are async iterables. All take Connect's options, including
 * `signal` and `timeoutMs`, and throw TandemError.
 *
 * @param at Address of the transport, for error messages.
 */
export function typedCalls<S extends DescService>(service: S, transport: Transport, at: string): Client<S> {
  const client = createClient(service, transport) as Record<string, any>;
  const methods = service.methods.map(({ localName, methodKind }) => {
    const call = client[localName].bind(client);
    const unary = (request: object, options?: CallOptions): Promise<unknown> =>
      call(request, options).catch((error: unknown) => {
        throw asThrown(at, error, options?.signal);
      });
    async function* stream(request: object, options?: CallOptions): AsyncGenerator<unknown> {
      try {
        yield* call(request, options);
      } catch (error) {
        throw asThrown(at, error, options?.signal);
      }
    }
    return [localName, methodKind === "unary" ? unary : stream];
  });
  return Object.fromEntries(methods) as Client<S>;
}

/** Sends `secret` with each call, unless it is empty. */
export function authorized(secret: string): Interceptor {
  return (next) => (request) => {
    if (secret !== "") request.header.set("authorization", `Bearer ${secret}`);
    return next(request);
  };
}

function asThrown(at: string, thrown: unknown, signal: AbortSignal | undefined): unknown {
  if (signal?.aborted === true) return signal.reason;
  const error = ConnectError.from(thrown);
  const [info] = error.findDetails(ErrorInfoSchema);
  const [retry] = error.findDetails(RetryInfoSchema);
  const own = info === undefined ? undefined : fromDetails(error.rawMessage, info, retry);
  if (own !== undefined) {
    const { code, retryAfterS } = own;
    return new TandemError(code === "unauthenticated" ? code : "failed", own.message, { code, retryAfterS });
  }
  // The remaining errors are not Tandem's own: an error of the connection, or another server's answer.
  if (error.code === Code.DeadlineExceeded)
    return new TandemError("unreachable", `${at} did not answer in time.`, { cause: error });
  return error.cause instanceof Error ? connectionError(at, error.cause) : notTandem(at, undefined, error);
}
