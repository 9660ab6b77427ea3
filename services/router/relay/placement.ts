// Picks the instances of one attempt from one snapshot of the pool: prefill by its policy among those that have a
// partner, decode by its own among the partners. Says in words what is missing where nothing fits.
import type { Load } from "#gen/tandem/instance/v1/instance_pb.js";
import { ServiceError } from "../../common/errors.ts";
import { CONNECTORS } from "../../kv/index.ts";
import type { ConnectorName } from "../../kv/connector.ts";
import type { Policy } from "../policy/index.ts";
import { pairFault } from "../pool/compat.ts";
import { candidateOf } from "../pool/member.ts";
import type { Member } from "../pool/member.ts";
import type { Pool, PoolSnapshot } from "../pool/pool.ts";
import type { LegTraits, Side } from "./legs.ts";

export interface Place {
  readonly traits: LegTraits;
  readonly prefill: Member;
  /** Undefined where the connector has it picked after prefill. */
  readonly decode: Member | undefined;
}

/** What one choice has learned about instances in its earlier attempts. */
export class Avoid {
  readonly #failed = new Set<string>();
  readonly #busy = new Map<string, { readonly load: Load | undefined; readonly legs: number }>();

  /** Others are preferred from now on; where there is none, it gets its second chance. */
  failed(member: Member): void {
    this.#failed.add(member.info.instanceId);
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
    return this.#failed.has(member.info.instanceId);
  }
}

export interface Placer {
  /** @throws ServiceError `no_instance`; `instance_busy` where waiting may help */
  place(model: string, avoid: Avoid): Place;
  /** A decode instance for KV that `prefill` keeps. Throws as `place`. */
  placeDecode(prefill: Member, avoid: Avoid): Member;
}

export function createPlacer(pool: Pool, policies: { readonly prefill: Policy; readonly decode: Policy }): Placer {
  const known = new WeakMap<PoolSnapshot, Map<string, Pairs>>();

  function pairsOf(model: string): Pairs {
    const { snapshot } = pool;
    let models = known.get(snapshot);
    if (models === undefined) known.set(snapshot, (models = new Map()));
    let pairs = models.get(model);
    if (pairs === undefined) models.set(model, (pairs = findPairs(snapshot, model)));
    if (pairs.prefills.length === 0) throw noInstance(snapshot, model);
    return pairs;
  }

  function pick(policy: Policy, side: Side, members: readonly Member[], avoid: Avoid): Member {
    let able = members.filter((member) => !avoid.isBusy(member));
    if (able.length === 0) throw allBusy(side, members.length);
    able = preferred(able, (member) => !avoid.hasFailed(member));
    const candidates = able.map(candidateOf);
    const picked = policy.pick(preferred(candidates, ({ freeSlots }) => freeSlots > 0));
    return able[candidates.indexOf(picked)]!;
  }

  return {
    place(model, avoid) {
      const { prefills, partners } = pairsOf(model);
      const partnered = prefills.filter((prefill) => partners.get(prefill)!.some((decode) => !avoid.isBusy(decode)));
      // No prefill is paid while its KV has nowhere to go.
      if (partnered.length === 0) throw allBusy("decode", new Set([...partners.values()].flat()).size);
      const prefill = pick(policies.prefill, "prefill", partnered, avoid);
      const { traits } = CONNECTORS[prefill.info.connector as ConnectorName];
      const decode = traits.decodeFirst ? pick(policies.decode, "decode", partners.get(prefill)!, avoid) : undefined;
      return { traits, prefill, decode };
    },
    placeDecode(prefill, avoid) {
      const { snapshot } = pool;
      const partners = snapshot.decode.filter((decode) => decode.eligible && fault(prefill, decode) === undefined);
      if (partners.length === 0) throw noInstance(snapshot, prefill.info.model);
      return pick(policies.decode, "decode", partners, avoid);
    },
  };
}

interface Pairs {
  /** Those with a partner. */
  readonly prefills: readonly Member[];
  readonly partners: ReadonlyMap<Member, readonly Member[]>;
}

function findPairs(snapshot: PoolSnapshot, model: string): Pairs {
  const ready = (member: Member): boolean => member.eligible && member.info.model === model;
  const decodes = snapshot.decode.filter(ready);
  const partners = new Map<Member, readonly Member[]>();
  for (const prefill of snapshot.prefill.filter(ready)) {
    const fitting = decodes.filter((decode) => fault(prefill, decode) === undefined);
    if (fitting.length > 0) partners.set(prefill, fitting);
  }
  return { prefills: [...partners.keys()], partners };
}

function fault(prefill: Member, decode: Member): string | undefined {
  const { connector } = prefill.info;
  if (!Object.hasOwn(CONNECTORS, connector)) return `this router doesn't know the KV connector ${connector}`;
  return pairFault(prefill.info, decode.info);
}

function preferred<T>(items: readonly T[], test: (item: T) => boolean): T[] {
  const good = items.filter(test);
  return good.length > 0 ? good : [...items];
}

function allBusy(side: Side, count: number): ServiceError {
  const which = count === 1 ? `The ${side} instance is busy` : `All ${count} ${side} instances are busy`;
  return new ServiceError("instance_busy", `${which}. Try again in a second.`, { retryAfterS: 1 });
}

function noInstance(snapshot: PoolSnapshot, model: string): ServiceError {
  const lacks: string[] = [];
  for (const side of ["prefill", "decode"] as const) {
    const known = snapshot[side].filter((member) => member.info.model === model);
    if (known.some((member) => member.eligible)) continue;
    lacks.push(`no ${side} instance is ready for model "${model}" (${census(known)})`);
  }
  if (lacks.length === 0) lacks.push(`no prefill and decode instance of model "${model}" fit each other: ${misfit(snapshot, model)}`);
  const text = lacks.join(", and ");
  return new ServiceError("no_instance", `${text[0]!.toUpperCase()}${text.slice(1)}. Try again in a second.`, { retryAfterS: 1 });
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
  return fault(prefill, decode) ?? "they changed";
}
