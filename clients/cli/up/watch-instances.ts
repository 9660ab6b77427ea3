// The instances that the router sees, for as long as `tandem up` runs. The router comes later than the watch, and may go
// and come again.
import { setTimeout as sleep } from "node:timers/promises";
import type { Instance } from "#gen/tandem/router/v1/router_pb.js";
import { TandemError } from "../../client/errors.ts";

/** While the router starts, nothing reports that its port is open: asking again is cheap, waiting is not. */
const RETRY_MS = 15;
/** Another server listens there, which will not change soon. */
const RETRY_STRANGER_MS = 250;

export interface WatchOptions {
  /** Such as `http://127.0.0.1:3000`. */
  readonly url: string;
  /** Join token. */
  readonly token: string;
  /** Called at once when the router answers, and after every change. */
  onInstances(instances: readonly Instance[]): void;
  readonly stop: AbortSignal;
}

/** Resolves when `stop` aborts. */
export async function watchInstances({ url, token, onInstances, stop }: WatchOptions): Promise<void> {
  // Loaded here, while the processes start: `up` has started them by then.
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
