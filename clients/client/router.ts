// RouterService of one router, over Connect on its REST address: HTTP/1.1, which passes any proxy.
import type { Client } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { RouterService } from "#gen/tandem/router/v1/router_pb.js";
import { authorized, typedCalls } from "./calls.ts";

/** The calls in proto/tandem/router/v1/router.proto. */
export type RouterClient = Client<typeof RouterService>;

/**
 * @param url REST address of the router, such as `http://127.0.0.1:3000`.
 * @param token Join token of its deployment.
 */
export function routerClient(url: string, token = ""): RouterClient {
  const interceptors = [authorized(token)];
  return typedCalls(RouterService, createConnectTransport({ baseUrl: url, httpVersion: "1.1", interceptors }), url);
}
