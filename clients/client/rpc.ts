// The gRPC services of Tandem, as typed calls: those of a router over Connect on its REST address, and those at any
// gRPC address.
import type { DescService } from "@bufbuild/protobuf";
import {
  Code,
  ConnectError,
  createClient,
  type CallOptions,
  type Client,
  type Interceptor,
  type Transport,
} from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { ErrorInfoSchema, RetryInfoSchema } from "#gen/google/rpc/error_details_pb.js";
import { InferenceService } from "#gen/tandem/inference/v1/inference_pb.js";
import { InstanceService } from "#gen/tandem/instance/v1/instance_pb.js";
import { RouterService } from "#gen/tandem/router/v1/router_pb.js";
import { fromDetails } from "../../services/rpc/errors-wire.ts";
import { connectionError, notTandem, TandemError } from "./errors.ts";

/** The calls in proto/tandem/router/v1/router.proto. */
export type RouterClient = Client<typeof RouterService>;

/**
 * Over HTTP/1.1, which passes any proxy.
 *
 * @param url REST address of the router, such as `http://127.0.0.1:3000`.
 * @param token Join token of its deployment.
 */
export function routerClient(url: string, token = ""): RouterClient {
  const transport = createConnectTransport({ baseUrl: url, httpVersion: "1.1", interceptors: [authorized(token)] });
  return typedCalls(RouterService, transport, url);
}

export interface GrpcClient {
  /** Service of a prefill or decode instance: its facts, its load, drain. */
  readonly instance: Client<typeof InstanceService>;
  /** Control service of a router. */
  readonly router: RouterClient;
  /** Inference service of a router; requires the API key. */
  readonly inference: Client<typeof InferenceService>;
}

/**
 * @param address Such as `127.0.0.1:3001`: a router's, or that of an instance, which has no other protocol.
 * @param secret Join token or, if only `inference` is called, the API key.
 */
export function grpcClient(address: string, secret = ""): GrpcClient {
  const transport = createGrpcTransport({ baseUrl: `http://${address}`, interceptors: [authorized(secret)] });
  return {
    instance: typedCalls(InstanceService, transport, address),
    router: typedCalls(RouterService, transport, address),
    inference: typedCalls(InferenceService, transport, address),
  };
}

/**
 * One method for each call of `service`; streams are async iterables. All take Connect's options, including
 * `signal` and `timeoutMs`, and throw TandemError.
 *
 * @param at Address of the transport, for error messages.
 */
function typedCalls<S extends DescService>(service: S, transport: Transport, at: string): Client<S> {
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
function authorized(secret: string): Interceptor {
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
