// Picks the instances of one attempt from one snapshot of the pool: prefill by its policy among those that have a
// partner, decode by its own among the partners. Says in words what is missing where nothing fits.
import type { Load } from "#gen/tandem/instance/v1/instance_pb.js";
import { ServiceError } from "../../common/errors.ts";
import { CONNECTORS, servesUnpaired } from "../../kv/index.ts";
import type { ConnectorName } from "../../kv/connector.ts";
import type { Policy } from "./policies.ts";
import { pairFault } from "../pool/compat.ts";
import { candidateOf } from "./candidate.ts";
import type { Member } from "../pool/member.ts";
import type { Pool, PoolSnapshot } from "../pool/pool.ts";
import { pairKey } from "../pool/pairs.ts";
import type { LegTraits, Side } from "../leg/protocol.ts";
import type { Shun } from "../relay/retry.ts";

/** What is to be placed. */
export interface Wanted {
  readonly model: string;
  /** Of its prompt, estimated. */
  readonly tokens: number;
  /** Only as planned: on a pair. */
  readonly strict: boolean;
}

export interface Place {
  readonly traits: LegTraits;
  /** Undefined where decode serves alone. */
  readonly prefill: Member | undefined;
  /** Undefined where the connector has it picked after prefill. */
  readonly decode: Member | undefined;
  /** What is not as planned about it. */
  readonly fallback?: "pair_avoided" | "aggregated" | "direct";
}

/** When decode may serve alone, where the connector allows it. */
export interface AloneRules {
  /** While no prefill instance is left; not while the first one is still to come. */
  readonly aggregate: boolean;
  /** Prompts of fewer tokens. */
  readonly directTokens: number;
}

/** What one choice has learned about instances in its earlier attempts. */
export class Avoid {
  readonly #shunned = new Map<string, Shun>();
  readonly #busy = new Map<string, { readonly load: Load | undefined; readonly legs: number }>();

  /** `failed`: others are preferred from now on, and it gets its second chance where there is none. `wedged`: never again. */
  shun(member: Member, how: Shun): void {
    const { instanceId } = member.info;
    if (this.#shunned.get(instanceId) !== "wedged") this.#shunned.set(instanceId, how);
  }

  /** It refused for want of a slot: out until something says that one is free. Called after the leg was given back. */
  busy(member: Member): void {
    this.#busy.set(member.info.instanceId, { load: member.load, legs: member.legs });
  }

  isBusy(member: Member): boolean {
    const mark = this.#busy.get(member.info.instanceId);
    if (mark === undefined) return false;
    const news = member.load !== mark.load || member.legs < mark.legs;
    if (!news || candidateOf(member).freeSlots === 0) return true;
    this.#busy.delete(member.info.instanceId);
    return false;
  }

  hasFailed(member: Member): boolean {
    return this.#shunned.has(member.info.instanceId);
  }

  isWedged(member: Member): boolean {
    return this.#shunned.get(member.info.instanceId) === "wedged";
  }
}

export interface Placer {
  /** @throws ServiceError `no_instance`; `instance_busy` where waiting may help */
  place(wanted: Wanted, avoid: Avoid): Place;
  /** A decode instance for KV that `prefill` keeps or, given a model, for a leg without prefill. Throws as `place`. */
  placeDecode(prefill: Member | string, avoid: Avoid): Member;
}

export function createPlacer(
  pool: Pick<Pool, "snapshot">,
  policies: { readonly prefill: Policy; readonly decode: Policy },
  alone: AloneRules = { aggregate: false, directTokens: 0 },
): Placer {
  const known = new WeakMap<PoolSnapshot, Map<string, Pairs>>();

  function pairsOf(model: string): Pairs {
    const { snapshot } = pool;
    let models = known.get(snapshot);
    if (models === undefined) known.set(snapshot, (models = new Map()));
    let pairs = models.get(model);
    if (pairs === undefined) models.set(model, (pairs = findPairs(snapshot, model)));
    return pairs;
  }

  function pick(policy: Policy, side: Side, members: readonly Member[], avoid: Avoid): Member {
    const sound = members.filter((member) => !avoid.isWedged(member));
    if (sound.length === 0) throw allTried(side);
    let able = sound.filter((member) => !avoid.isBusy(member));
    if (able.length === 0) throw allBusy(side, sound.length);
    able = preferred(able, (member) => !avoid.hasFailed(member));
    const candidates = able.map(candidateOf);
    const picked = policy.pick(preferred(candidates, ({ freeSlots }) => freeSlots > 0));
    return able[candidates.indexOf(picked)]!;
  }

  /** For a leg without prefill; which of them, is found when it opens. */
  function placeAlone({ solo }: Pairs, fallback: "aggregated" | "direct", avoid: Avoid): Place | undefined {
    const able = solo.filter((member) => !avoid.isWedged(member));
    if (able.length === 0) return undefined;
    if (able.every((member) => avoid.isBusy(member))) throw allBusy("decode", able.length);
    const { traits } = CONNECTORS[able[0]!.info.connector as ConnectorName];
    return { traits: { ...traits, unpaired: true }, prefill: undefined, decode: undefined, fallback };
  }

  return {
    place({ model, tokens, strict }, avoid) {
      const pairs = pairsOf(model);
      const { prefills, partners } = pairs;
      if (!strict && tokens < alone.directTokens) {
        const place = placeAlone(pairs, "direct", avoid);
        if (place !== undefined) return place;
      }
      const usable = prefills.filter((prefill) => !avoid.isWedged(prefill));
      if (usable.length === 0) {
        const mayBeAlone = !strict && alone.aggregate && pool.snapshot.awaitsPrefill?.has(model) !== true;
        const place = !mayBeAlone ? undefined : placeAlone(pairs, "aggregated", avoid);
        if (place !== undefined) return place;
        throw prefills.length > 0 ? allTried("prefill") : noInstance(pool.snapshot, model);
      }
      const partnered = usable.filter((prefill) =>
        partners.get(prefill)!.some((decode) => !avoid.isBusy(decode) && !avoid.isWedged(decode)),
      );
      if (partnered.length === 0) {
        const decodes = new Set(
          usable.flatMap((prefill) => partners.get(prefill)!).filter((decode) => !avoid.isWedged(decode)),
        );
        // No prefill is paid while its KV has nowhere to go.
        throw decodes.size === 0 ? allTried("decode") : allBusy("decode", decodes.size);
      }
      const prefill = pick(policies.prefill, "prefill", partnered, avoid);
      const { traits } = CONNECTORS[prefill.info.connector as ConnectorName];
      const decode = traits.decodeFirst ? pick(policies.decode, "decode", partners.get(prefill)!, avoid) : undefined;
      return { traits, prefill, decode, ...(pairs.avoided ? { fallback: "pair_avoided" } : {}) };
    },
    placeDecode(prefill, avoid) {
      const { snapshot } = pool;
      if (typeof prefill === "string") {
        const { solo } = pairsOf(prefill);
        if (solo.length === 0) throw noInstance(snapshot, prefill);
        return pick(policies.decode, "decode", solo, avoid);
      }
      const partners = snapshot.decode.filter(
        (decode) => decode.eligible && fault(prefill, decode, snapshot) === undefined,
      );
      if (partners.length === 0) throw noInstance(snapshot, prefill.info.model);
      return pick(policies.decode, "decode", partners, avoid);
    },
  };
}

interface Pairs {
  /** Those with a partner. */
  readonly prefills: readonly Member[];
  readonly partners: ReadonlyMap<Member, readonly Member[]>;
  /** Decode instances whose engines serve a request that belongs to no pair. */
  readonly solo: readonly Member[];
  /** Some pair of them is left out because its legs fail. */
  readonly avoided: boolean;
}

function findPairs(snapshot: PoolSnapshot, model: string): Pairs {
  const ready = (member: Member): boolean => member.eligible && member.info.model === model;
  const decodes = snapshot.decode.filter(ready);
  const partners = new Map<Member, readonly Member[]>();
  let avoided = false;
  for (const prefill of snapshot.prefill.filter(ready)) {
    const fitting = decodes.filter((decode) => fault(prefill, decode, snapshot) === undefined);
    if (fitting.length > 0) partners.set(prefill, fitting);
    avoided ||= decodes.some((decode) => isBroken(prefill, decode, snapshot));
  }
  const solo = decodes.filter(({ info }) => servesUnpaired(info.connector));
  return { prefills: [...partners.keys()], partners, solo, avoided };
}

function isBroken(prefill: Member, decode: Member, { brokenPairs }: PoolSnapshot): boolean {
  return brokenPairs.size > 0 && brokenPairs.has(pairKey(prefill.info.instanceId, decode.info.instanceId));
}

function fault(prefill: Member, decode: Member, snapshot: PoolSnapshot): string | undefined {
  const { connector } = prefill.info;
  if (!Object.hasOwn(CONNECTORS, connector)) return `this router doesn't know the KV connector ${connector}`;
  return (
    pairFault(prefill.info, decode.info) ??
    snapshot.barredPairs?.get(pairKey(prefill.info.instanceId, decode.info.instanceId)) ??
    (isBroken(prefill, decode, snapshot) ? "legs of the pair fail" : undefined)
  );
}

function preferred<T>(items: readonly T[], test: (item: T) => boolean): T[] {
  const good = items.filter(test);
  return good.length > 0 ? good : [...items];
}

function allBusy(side: Side, count: number): ServiceError {
  const which = count === 1 ? `The ${side} instance is busy` : `All ${count} ${side} instances are busy`;
  return new ServiceError("instance_busy", `${which}. Try again in a second.`, { retryAfterS: 1 });
}

function allTried(side: Side): ServiceError {
  return new ServiceError("no_instance", `No ${side} instance is left to try. Try again in a second.`, {
    retryAfterS: 1,
  });
}

function noInstance(snapshot: PoolSnapshot, model: string): ServiceError {
  const lacks: string[] = [];
  for (const side of ["prefill", "decode"] as const) {
    const known = snapshot[side].filter((member) => member.info.model === model);
    if (known.some((member) => member.eligible)) continue;
    lacks.push(`no ${side} instance is ready for model "${model}" (${census(known)})`);
  }
  if (lacks.length === 0)
    lacks.push(`no prefill and decode instance of model "${model}" fit each other: ${misfit(snapshot, model)}`);
  const text = lacks.join(", and ");
  return new ServiceError("no_instance", `${text[0]!.toUpperCase()}${text.slice(1)}. Try again in a second.`, {
    retryAfterS: 1,
  });
}

/** "2 known: 1 draining, 1 starting" */
function census(members: readonly Member[]): string {
  if (members.length === 0) return "none is known";
  const counts = new Map<string, number>();
  for (const { condition } of members) counts.set(condition, (counts.get(condition) ?? 0) + 1);
  return `${members.length} known: ${[...counts].map(([condition, count]) => `${count} ${condition}`).join(", ")}`;
}

function misfit(snapshot: PoolSnapshot, model: string): string {
  const ready = (member: Member): boolean => member.eligible && member.info.model === model;
  const [prefill, decode] = [snapshot.prefill.find(ready)!, snapshot.decode.find(ready)!];
  return fault(prefill, decode, snapshot) ?? "they changed";
}
