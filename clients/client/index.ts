// The typed client of Tandem, as the package exports it.
//
//   import { tandemClient } from "@tandem-llm/tandem";
//   const tandem = tandemClient({ url: "http://127.0.0.1:3000", token });
//   for await (const { choices } of await tandem.streamChat({ model, messages })) { ... }
//   const { instances } = await tandem.router.listInstances({});
import { openAiClient, type OpenAiClient } from "./openai.ts";
import { routerClient, type RouterClient } from "./rpc.ts";

export { TandemError, type TandemErrorKind } from "./errors.ts";
export type * from "./openai.ts";
export type { Readiness } from "./readiness.ts";
export { grpcClient, type GrpcClient, type RouterClient } from "./rpc.ts";

export interface TandemClientOptions {
  /** REST address of the router. Default `http://127.0.0.1:3000`. */
  readonly url?: string;
  /** API key that the router requires of OpenAI clients. */
  readonly apiKey?: string;
  /** Join token of the deployment, which calls of `router` need. */
  readonly token?: string;
}

/** Opens no connection before the first call and needs no closing. */
export interface TandemClient extends OpenAiClient {
  readonly url: string;
  /** Looks into the router: instances, requests and their receipts, settings, diagnosis; and drains. */
  readonly router: RouterClient;
}

export function tandemClient(options: TandemClientOptions = {}): TandemClient {
  const { url = "http://127.0.0.1:3000", apiKey, token } = options;
  return { url, ...openAiClient(url, apiKey), router: routerClient(url, token) };
}
