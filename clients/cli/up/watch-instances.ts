// The instances that the router sees, for as long as `tandem up` runs. The router starts later than the watch, and may
// restart.
import { setTimeout as sleep } from "node:timers/promises";
import type { Instance } from "#gen/tandem/router/v1/router_pb.js";
import { TandemError } from "../../client/errors.ts";

/**
 * Nothing reports that the starting router's port is open, so the watch retries often: a retry is cheap, a delay is
 * not.
 */
const RETRY_MS = 15;
/** Another server listens there, and that will not change soon. */
const RETRY_STRANGER_MS = 250;

export interface WatchOptions {
  /** Such as `http://127.0.0.1:3000`. */
  readonly url: string;
  /** Join token of the router. */
  readonly token: string;
  /** Called at once when the router answers, and after every change. */
  onInstances(instances: readonly Instance[]): void;
  readonly stop: AbortSignal;
}

/** Resolves when `stop` aborts. */
export async function watchInstances({ url, token, onInstances, stop }: WatchOptions): Promise<void> {
  // Imported here, so that `up` starts the processes first and the import runs meanwhile.
  const { routerClient } = await import("../../client/router.ts");
  const router = routerClient(url, token);
  while (!stop.aborted) {
    let pauseMs = RETRY_MS;
    try {
      for await (const { instances } of router.watchInstances({}, { signal: stop })) onInstances(instances);
    } catch (error) {
      if (error instanceof TandemError && error.kind === "not_tandem") pauseMs = RETRY_STRANGER_MS;
    }
    await sleep(pauseMs, undefined, { signal: stop }).catch(() => {});
  }
}
