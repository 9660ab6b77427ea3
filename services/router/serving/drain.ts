// How requests end when the router stops: new ones are refused, running ones may end, then the rest are cut.
import { settlesWithin, systemClock } from "../../common/clock.ts";
import { ServiceError } from "../../common/errors.ts";
import type { Log } from "../../common/log.ts";
import type { RunningRelay } from "../relay/relay.ts";
import type { Serving } from "./serving.ts";

/** For requests that were ended to say so to their clients. */
const LAST_WORDS_MS = 250;
/** Time to settle the KV of requests whose client left. Afterwards the instances settle the rest by themselves. */
const SETTLE_MS = 500;

/** Refuses new requests from the call on. Resolves when all have ended, at the latest a second after `graceMs`. */
export async function drain(
  { serving, relay, log }: { readonly serving: Serving; readonly relay: Pick<RunningRelay, "idle">; readonly log: Log },
  graceMs: number,
  clock = systemClock,
): Promise<void> {
  const idle = serving.drain();
  if (serving.count > 0) log.info("router is draining", { requests: serving.count, graceMs });
  if (!(await settlesWithin(clock, idle, graceMs))) {
    log.warn("router is ending the requests that are still running", { requests: serving.count });
    serving.abandonAll(
      new ServiceError("instance_unavailable", "The server was stopped before the answer was complete. Try again.", {
        retryAfterS: 1,
      }),
    );
    await settlesWithin(clock, idle, LAST_WORDS_MS);
  }
  await settlesWithin(clock, relay.idle(), Math.min(graceMs, SETTLE_MS));
}
