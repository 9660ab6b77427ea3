// Whether a router can serve.
import { getText } from "../common/get-text.ts";
import { connectionError, notTandem } from "./errors.ts";

/** The answer of `/readyz`. */
export interface Readiness {
  readonly ready: boolean;
  /** Why the router is not ready. Empty while it is ready. */
  readonly reason: string;
}

/** @throws TandemError if no router answers, or the reason of `signal`. */
export async function readiness(url: string, signal?: AbortSignal, ca?: string): Promise<Readiness> {
  const { status, text } = await getText(`${url}/readyz`, signal, ca).catch((error: Error) => {
    throw signal?.aborted === true ? signal.reason : connectionError(url, error);
  });
  const answer = parse<{ status?: string; reason?: string }>(text);
  if (answer?.status === undefined) throw notTandem(url, status);
  return { ready: status === 200, reason: answer.reason ?? "" };
}

/** Undefined if `text` is not JSON. */
export function parse<T>(text: string): T | undefined {
  try {
    return JSON.parse(text) as T;
  } catch {
    return undefined;
  }
}
