// How the router ends: nothing new, then what runs may end, then everything closes.
import { ServiceError } from "../common/errors.ts";
import type { Log } from "../common/log.ts";
import type { Registration } from "../discovery/registry.ts";
import type { RpcServer } from "../rpc/server.ts";
import type { Pool } from "./pool/pool.ts";
import type { RunningRelay } from "./relay/relay.ts";
import type { HttpServer } from "./rest/server.ts";
import type { Serving } from "./serving/serving.ts";

/** For requests that were ended to say so to their clients. */
const LAST_WORDS_MS = 250;
/** For KV of requests whose client left to be settled. What is not done by then, the instances do by themselves. */
const SETTLE_MS = 500;

export interface RouterParts {
  readonly serving: Serving;
  readonly relay: RunningRelay;
  readonly rpc: RpcServer;
  readonly http: HttpServer;
  readonly directories: { [Symbol.asyncDispose](): Promise<void> };
  readonly registry: { [Symbol.asyncDispose](): Promise<void> };
  /** This router's own entry in it. */
  readonly registration: Registration | undefined;
  readonly pool: Pool;
  readonly deadlines: Disposable;
  /** Ends calls of RouterService over HTTP/1.1 that have no end of their own. */
  readonly closing: AbortController;
  readonly log: Log;
}

export async function drainAndStop(parts: RouterParts, graceMs: number): Promise<void> {
  const { serving, rpc, http, log } = parts;
  // New requests get 503 and /readyz says so, on a port that stays open: a balancer sees us leave before we are gone.
  const idle = serving.drain();
  rpc.setServing(false, "draining");
  parts.registration?.update();
  http.closeIdle();
  if (serving.count > 0) log.info("router drains", { requests: serving.count, graceMs });
  if (!(await within(idle, graceMs))) {
    log.warn("router ends requests that still run", { requests: serving.count });
    serving.abandonAll(
      new ServiceError("instance_unavailable", "The server was stopped before the answer was complete. Try again.", {
        retryAfterS: 1,
      }),
    );
    await within(idle, LAST_WORDS_MS);
  }
  await within(parts.relay.idle(), Math.min(graceMs, SETTLE_MS));
  parts.closing.abort(new ServiceError("instance_unavailable", "The server is stopping."));
  await parts.registration?.[Symbol.asyncDispose]();
  await parts.directories[Symbol.asyncDispose]();
  await parts.registry[Symbol.asyncDispose]();
  await Promise.all([http[Symbol.asyncDispose](), rpc[Symbol.asyncDispose]()]);
  await parts.relay[Symbol.asyncDispose]();
  await parts.pool[Symbol.asyncDispose]();
  parts.deadlines[Symbol.dispose]();
  log.info("router has stopped");
}

/** Whether `promise` settles within `ms`. */
function within(promise: Promise<void>, ms: number): Promise<boolean> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(false), ms);
    void promise.then(() => {
      clearTimeout(timer);
      resolve(true);
    });
  });
}
