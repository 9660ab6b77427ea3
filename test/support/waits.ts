// Waiting for events. Every wait has a limit and says what it waited for; none is a pause. The limit only ends a test that
// would never end: nothing is asserted by it, and a busy machine must not reach it.
import type { EventEmitter } from "node:events";
import { setImmediate, setTimeout as sleep } from "node:timers/promises";

import { deferred, type Deferred } from "../../services/common/clock.ts";

export { freePort } from "../../services/common/ports.ts";
export { deferred, type Deferred };

const LIMIT_MS = 15_000;

/** `promise`, or an error that names `what` after `limitMs`. */
export async function within<T>(promise: Promise<T>, what: string, limitMs = LIMIT_MS): Promise<T> {
  const done = new AbortController();
  const late = sleep(limitMs, undefined, { signal: done.signal }).then(
    () => Promise.reject(new Error(`${what}: nothing within ${limitMs} ms`)),
    () => new Promise<never>(() => {}),
  );
  try {
    return await Promise.race([promise, late]);
  } finally {
    done.abort();
  }
}

/** Arguments of the next `event` of `emitter`. Unlike `events.once` an "error" doesn't end the wait. */
export function nextEvent(emitter: EventEmitter, event: string, limitMs = LIMIT_MS): Promise<unknown[]> {
  const { promise, resolve } = deferred<unknown[]>();
  emitter.once(event, (...args: unknown[]) => resolve(args));
  return within(promise, `event ${event}`, limitMs);
}

/**
 * The first result of `look` that is neither false nor undefined. For state that announces its change to nobody, such as
 * another process; a rejection counts as "not yet".
 */
export async function eventually<T>(
  what: string,
  look: () => T | Promise<T>,
  limitMs = LIMIT_MS,
): Promise<Exclude<T, false | undefined>> {
  const untilMs = performance.now() + limitMs;
  for (let last: unknown; ; ) {
    try {
      const result = await look();
      if (result !== false && result !== undefined) return result as Exclude<T, false | undefined>;
    } catch (error) {
      last = error;
    }
    if (performance.now() > untilMs) throw new Error(`${what}: not so within ${limitMs} ms`, { cause: last });
    await sleep(10);
  }
}

/**
 * Lets everything happen that can without more time: on loopback bytes are at the other end as soon as they are written,
 * and each turn of the event loop reads what is there. For "nothing happened" between sockets of this process.
 */
export async function untilQuiet(): Promise<void> {
  for (let turn = 0; turn < 50; turn++) await setImmediate();
}
