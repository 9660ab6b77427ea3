// What is missing for serving, in words that name no address.
import { servesUnpaired } from "../../kv/index.ts";
import type { Member, PoolSnapshot } from "../pool/pool.ts";

/**
 * Undefined where `model` can be served: it has an eligible instance on either side.
 *
 * @param aggregate Decode alone is enough, where the connector allows it and prefill is not still to come.
 */
export function lackOf(snapshot: PoolSnapshot, model: string, aggregate = false): string | undefined {
  const lacks: string[] = [];
  const isAlone = ({ eligible, info }: Member): boolean =>
    eligible && info.model === model && servesUnpaired(info.connector);
  if (aggregate && snapshot.awaitsPrefill?.has(model) !== true && snapshot.decode.some(isAlone)) return undefined;
  for (const role of ["prefill", "decode"] as const) {
    let known = 0;
    let eligible = 0;
    for (const member of snapshot[role]) {
      if (member.info.model !== model || member.condition === "left") continue;
      known += 1;
      if (member.eligible) eligible += 1;
    }
    if (eligible > 0) continue;
    lacks.push(
      known === 0
        ? `no ${role} instance is registered`
        : known === 1
          ? `its only ${role} instance takes no requests now`
          : `none of its ${known} ${role} instances takes requests now`,
    );
  }
  return lacks.length === 0 ? undefined : `The model \`${model}\` can't be served: ${lacks.join(", and ")}.`;
}

/** Undefined where at least one model can be served. */
export function unreadiness(snapshot: PoolSnapshot, aggregate = false): string | undefined {
  if (snapshot.models.size === 0) return "No instance has registered: start a prefill and a decode instance.";
  const lacks: string[] = [];
  for (const model of snapshot.models.keys()) {
    const lack = lackOf(snapshot, model, aggregate);
    if (lack === undefined) return undefined;
    lacks.push(lack);
  }
  return lacks.join(" ");
}
