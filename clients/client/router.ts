// RouterService of one router, over Connect on its REST address: HTTP/1.1, which passes any proxy.
import { Code, ConnectError, createClient, type Client } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { ErrorInfoSchema, RetryInfoSchema } from "#gen/google/rpc/error_details_pb.js";
import { RouterService } from "#gen/tandem/router/v1/router_pb.js";
import { fromDetails } from "../../services/rpc/errors-wire.ts";
import { connectionError, notTandem, TandemError } from "./errors.ts";

/**
 * One method for each call of proto/tandem/router/v1/router.proto; streams are async iterables. All take Connect's options,
 * `signal` and `timeoutMs` among them, and throw TandemError.
 */
export type RouterClient = Client<typeof RouterService>;

/**
 * @param url REST address of the router, such as `http://127.0.0.1:3000`.
 * @param token Join token of its deployment.
 */
export function routerClient(url: string, token = ""): RouterClient {
  const transport = createConnectTransport({
    baseUrl: url,
    httpVersion: "1.1",
    interceptors: [
      (next) => (request) => {
        if (token !== "") request.header.set("authorization", `Bearer ${token}`);
        return next(request);
      },
    ],
  });
  const client = createClient(RouterService, transport) as Record<string, any>;
  const methods = RouterService.methods.map(({ localName, methodKind }) => {
    const call = client[localName].bind(client);
    const unary = (request: object, options?: { signal?: AbortSignal }): Promise<unknown> =>
      call(request, options).catch((error: unknown) => {
        throw asThrown(url, error, options?.signal);
      });
    async function* stream(request: object, options?: { signal?: AbortSignal }): AsyncGenerator<unknown> {
      try {
        yield* call(request, options);
      } catch (error) {
        throw asThrown(url, error, options?.signal);
      }
    }
    return [localName, methodKind === "unary" ? unary : stream];
  });
  return Object.fromEntries(methods) as RouterClient;
}

function asThrown(url: string, thrown: unknown, signal: AbortSignal | undefined): unknown {
  if (signal?.aborted === true) return signal.reason;
  const error = ConnectError.from(thrown);
  const [info] = error.findDetails(ErrorInfoSchema);
  const [retry] = error.findDetails(RetryInfoSchema);
  const own = info === undefined ? undefined : fromDetails(error.rawMessage, info, retry);
  if (own !== undefined) {
    const { code, retryAfterS } = own;
    return new TandemError(code === "unauthenticated" ? code : "failed", own.message, { code, retryAfterS });
  }
  // From here on it is not Tandem's own: a connection's error, or another server's answer.
  if (error.code === Code.DeadlineExceeded)
    return new TandemError("unreachable", `${url} did not answer in time.`, { cause: error });
  if (error.cause instanceof Error) return connectionError(url, error.cause);
  return notTandem(url, undefined, error);
}
