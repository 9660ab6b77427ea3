// Which pairs are due for a canary: what is out for its failures, each with a partner to prove itself with.
import type { Breaker } from "./breaker.ts";
import { pairable } from "./compat.ts";
import type { Member } from "./member.ts";
import type { Pairs } from "./pairs.ts";
import type { PoolSnapshot } from "./pool.ts";

/** One canary to send. */
export interface Probe {
  readonly prefill: Member;
  readonly decode: Member;
}

/**
 * Takes the probes that are due: the same one is due again only after its pause.
 *
 * @param breakerOf Of an instance.
 */
export function takeDue(
  snapshot: PoolSnapshot,
  pairs: Pairs,
  breakerOf: (member: Member) => Breaker,
  nowMs: number,
): Probe[] {
  const probes: Probe[] = [];
  /** Neither serves nor may be reached: a canary would tell nothing. */
  const reachable = (member: Member): boolean => member.condition === "serving" || member.condition === "failing";
  const find = (id: string, members: readonly Member[]): Member | undefined =>
    members.find((member) => member.info.instanceId === id && reachable(member));

  for (const { prefillId, decodeId, breaker } of pairs.open()) {
    if (!breaker.due(nowMs)) continue;
    const [prefill, decode] = [find(prefillId, snapshot.prefill), find(decodeId, snapshot.decode)];
    if (prefill === undefined || decode === undefined) continue;
    for (const one of [breaker, breakerOf(prefill), breakerOf(decode)]) one.probing(nowMs);
    probes.push({ prefill, decode });
  }
  for (const side of ["prefill", "decode"] as const) {
    const others = snapshot[side === "prefill" ? "decode" : "prefill"];
    for (const member of snapshot[side]) {
      if (member.condition !== "failing" || !breakerOf(member).due(nowMs)) continue;
      const fits = (other: Member): boolean =>
        reachable(other) &&
        (side === "prefill" ? pairable(member.info, other.info) : pairable(other.info, member.info));
      const fitting = others.filter(fits);
      const sound = fitting.filter(({ eligible }) => eligible);
      const partners = sound.length > 0 ? sound : fitting;
      if (partners.length === 0) continue;
      // Each time with another, for it may be the partner that fails.
      const partner = partners[breakerOf(member).probing(nowMs) % partners.length]!;
      if (!partner.eligible) breakerOf(partner).probing(nowMs);
      probes.push(side === "prefill" ? { prefill: member, decode: partner } : { prefill: partner, decode: member });
    }
  }
  return probes;
}
