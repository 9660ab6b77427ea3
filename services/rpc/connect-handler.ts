// The same services over HTTP/1.1, for browsers and curl: Connect, gRPC-Web and plain JSON by @connectrpc/connect-node.
// The package is loaded at the first such request: instances never need it, and routers only then.
import type { IncomingMessage, ServerResponse } from "node:http";
import type { HandlerContext, Interceptor } from "@connectrpc/connect";
import { systemClock } from "../common/clock.ts";
import { GRPC_CODES, type ServiceError, asServiceError } from "../common/errors.ts";
import type { Log } from "../common/log.ts";
import { type Secrets, createGate } from "./access.ts";
import { errorDetails } from "./errors-wire.ts";
import { type CallContext, type RpcService, methodPath, streamsOut } from "./service.ts";

export interface ConnectHandlerOptions extends Secrets {
  readonly log: Log;
  /** Aborts when the server begins to shut down. */
  readonly closing?: AbortSignal;
}

type Handler = (request: IncomingMessage, response: ServerResponse) => void;

/** Serves the typed methods of `services`. Calls `next` for every other path. */
export function connectHandler(
  services: readonly RpcService[],
  options: ConnectHandlerOptions,
): (request: IncomingMessage, response: ServerResponse, next: () => void) => void {
  const prefixes = services.map(({ descriptor }) => `/${descriptor.typeName}/`);
  let loading: Promise<Handler> | undefined;
  return (request, response, next) => {
    const url = request.url ?? "";
    if (!prefixes.some((prefix) => url.startsWith(prefix))) return next();
    loading ??= createHandler(services, options);
    loading.then(
      (handler) => handler(request, response),
      (error: unknown) => {
        options.log.error("the Connect package can't be loaded", { error });
        response.writeHead(500).end();
      },
    );
  };
}

async function createHandler(services: readonly RpcService[], options: ConnectHandlerOptions): Promise<Handler> {
  const [{ connectNodeAdapter }, { ConnectError }] = await Promise.all([
    import("@connectrpc/connect-node"),
    import("@connectrpc/connect"),
  ]);
  const toConnectError = (error: ServiceError): Error =>
    new ConnectError(error.message, GRPC_CODES[error.failure.grpc], undefined, errorDetails(error));
  const gate = createGate(options);
  const access = new Map(services.map((service) => [service.descriptor.typeName, service.access]));
  const never = new AbortController().signal;

  const refuse: Interceptor = (next) => (request) => {
    const refusal = gate(
      access.get(request.service.typeName) ?? "token",
      request.header.get("authorization") ?? undefined,
    );
    if (refusal !== undefined) throw toConnectError(refusal);
    return next(request);
  };

  return connectNodeAdapter({
    grpc: false, // Needs HTTP/2 and trailers: server.ts serves gRPC.
    interceptors: [refuse],
    // The body is read before the caller is authenticated. Requests over HTTP/1.1 have only a few fields.
    readMaxBytes: 256 * 1024,
    routes(router) {
      for (const { descriptor, typed } of services) {
        const methods = descriptor.methods.flatMap((method) => {
          const impl = typed[method.localName];
          if (impl === undefined) return [];
          const fail = (thrown: unknown): never => {
            const error = asServiceError(thrown);
            if (error.code === "internal") {
              options.log.error("call failed unexpectedly", { method: methodPath(descriptor, method), error: thrown });
            }
            throw toConnectError(error);
          };
          const contextOf = (given: HandlerContext): CallContext => {
            const timeoutMs = given.timeoutMs();
            return {
              signal: given.signal,
              closing: options.closing ?? never,
              deadlineMs: timeoutMs === undefined ? undefined : systemClock.nowMs() + timeoutMs,
              header: (name) => given.requestHeader.get(name) ?? undefined,
            };
          };
          const unary = async (request: unknown, given: HandlerContext): Promise<unknown> => {
            try {
              return await impl(request, contextOf(given));
            } catch (thrown) {
              return fail(thrown);
            }
          };
          const streaming = async function* (request: unknown, given: HandlerContext): AsyncIterable<unknown> {
            try {
              yield* impl(request, contextOf(given)) as AsyncIterable<unknown>;
            } catch (thrown) {
              fail(thrown);
            }
          };
          return [[method.localName, streamsOut(method) ? streaming : unary]];
        });
        router.service(descriptor, Object.fromEntries(methods) as any);
      }
    },
  });
}
