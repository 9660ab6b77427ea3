// Whether a router can serve. Uses node:http, because the health checks of containers run every few seconds: the first
// `fetch` of a process costs 0.15 s of CPU, this 0.03 s.
import { get } from "node:http";
import { connectionError, notTandem } from "./errors.ts";

/** The answer of `/readyz`. */
export interface Readiness {
  readonly ready: boolean;
  /** Why the router is not ready. Empty while it is ready. */
  readonly reason: string;
}

/** @throws TandemError if no router answers, or the reason of `signal`. */
export function readiness(url: string, signal?: AbortSignal): Promise<Readiness> {
  return new Promise((resolve, reject) => {
    const fail = (error: Error): void =>
      reject(signal?.aborted === true ? (signal.reason as Error) : connectionError(url, error));
    const call = get(`${url}/readyz`, { agent: false, ...(signal === undefined ? {} : { signal }) }, (response) => {
      let text = "";
      response.setEncoding("utf8").on("data", (piece: string) => (text += piece));
      response.on("error", fail);
      response.on("end", () => {
        const answer = parse<{ status?: string; reason?: string }>(text);
        if (answer?.status === undefined) reject(notTandem(url, response.statusCode));
        else resolve({ ready: response.statusCode === 200, reason: answer.reason ?? "" });
      });
    });
    call.on("error", fail);
  });
}

/** Undefined if `text` is not JSON. */
export function parse<T>(text: string): T | undefined {
  try {
    return JSON.parse(text) as T;
  } catch {
    return undefined;
  }
}
