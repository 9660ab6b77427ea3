// Waiting for the pool to see something.
import type { Instance, Pool, Seen } from "../../../services/router/pool/pool.ts";
import { deferred, within } from "../../support/waits.ts";
import { standingIn } from "./fleet.ts";

export async function untilPool(pool: Pool, what: string, look: (pool: Pool) => boolean): Promise<void> {
  if (look(pool)) return;
  const seen = deferred();
  const off = pool.onChange(() => {
    if (look(pool)) seen.resolve();
  });
  try {
    await within(seen.promise, what);
  } finally {
    off();
  }
}

export function seenIn(pool: Pool, instanceId: string): Seen | undefined {
  return [...pool.view.prefill, ...pool.view.decode].find(({ instance }) => instance.instanceId === instanceId);
}

export function instanceIn(pool: Pool, instanceId: string): Instance | undefined {
  return seenIn(pool, instanceId)?.instance;
}

/** @param standing `serves`, or why not. */
export function untilStanding(pool: Pool, instanceId: string, standing: string): Promise<void> {
  return untilPool(pool, `${instanceId}: ${standing}`, ({ view }) => standingIn(view, instanceId) === standing);
}
