// The typed client of a router.
import { openAiClient, type OpenAiClient } from "./openai.ts";
import { routerClient, type RouterClient } from "./router.ts";

export interface TandemClientOptions {
  /** REST address of the router. Default `http://127.0.0.1:3000`. */
  readonly url?: string;
  /** What the router wants of clients of the OpenAI API. */
  readonly apiKey?: string;
  /** Join token of the deployment: what calls of `router` need. */
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
