// Waiting for the pool to see something.
import type { Member, Pool } from "../../../services/router/pool/pool.ts";
import { deferred, within } from "../../support/waits.ts";

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

export function memberOf(pool: Pool, instanceId: string): Member | undefined {
  return [...pool.snapshot.prefill, ...pool.snapshot.decode].find(({ info }) => info.instanceId === instanceId);
}

export function untilCondition(pool: Pool, instanceId: string, condition: string): Promise<void> {
  return untilPool(pool, `${instanceId} to be ${condition}`, () => memberOf(pool, instanceId)?.condition === condition);
}
