// The fleet at one moment: which instances serve, which are out and why, which pairs there are, and what each model
// lacks. Placement, admission, readiness, /v1/models, the page, status, doctor and metrics all read it and decide none
// of it anew.
//
// A view is immutable; the pool makes a new one when a standing changes. Figures that change with every leg (legs,
// slots, tokens) are read from the instances themselves, so that the end of a leg needs no new view. The cost of a view
// grows with the instances and not with the pairs, because instances of one build share one list of partners.
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import { traitsOf } from "../../kv/index.ts";
import { buildOf, misfitOf } from "./compat.ts";
import type { Breaker } from "./breaker.ts";
import type { Instance } from "./instance.ts";
import type { Pairs } from "./pairs.ts";
import { type Facts, out, standingOf, type Reason, type Standing } from "./standing.ts";

export type Side = "prefill" | "decode";
export const SIDES = ["prefill", "decode"] as const satisfies readonly Side[];

export interface Seen {
  readonly instance: Instance;
  readonly standing: Standing;
}

export interface ModelView {
  readonly name: string;
  /** The shortest limit among its instances, in tokens. 0 if no instance reports one. */
  readonly maxModelLen: number;
  /** All registered instances of the model. */
  readonly prefill: readonly Seen[];
  readonly decode: readonly Seen[];
  /** Prefill instances that serve and have a partner, in the order of their ids. */
  readonly prefills: readonly Instance[];
  /** The decode instances that may get the KV of `prefill`, even if `prefill` itself takes no new legs. */
  partnersOf(prefill: Instance): readonly Instance[];
  /** Decode instances that serve, and whose engines take requests without a prefill partner. */
  readonly unpaired: readonly Instance[];
  /** Whether a pair that fits is left out because its legs fail. */
  readonly avoidsPair: boolean;
  /** Whether decode may serve unpaired now. False while the first prefill instance is still awaited. */
  readonly mayServeUnpaired: boolean;
  /** Legs of this router that its decode instances can hold at this moment. */
  readonly slots: number;
  /**
   * Why the model can't be served, as a sentence for clients; undefined if it can.
   *
   * @param paired Whether only pairs count, and not decode without prefill.
   */
  lack(paired: boolean): string | undefined;
}

export interface FleetView {
  /** In the order of their ids, including instances that left and still run legs. */
  readonly prefill: readonly Seen[];
  readonly decode: readonly Seen[];
  /** In the order of their names. */
  readonly models: ReadonlyMap<string, ModelView>;
  /** Whether an instance gets legs although its registry reports it dead or gone. */
  readonly overruled: boolean;
  /** Pairs that get no legs although both their instances do. */
  readonly pairsOut: number;
  /** Undefined if the two are a pair that takes legs; otherwise a clause for people. */
  pairFault(prefill: Instance, decode: Instance): string | undefined;
}

/** An instance with everything that its standing depends on. */
export type Known = Instance & Facts & { readonly breaker: Breaker };

export interface FleetRules {
  /** Whether decode serves unpaired while no prefill instance is left, if the connector allows it. */
  readonly unpaired: boolean;
  /** Whether the first prefill instance of a model is still awaited. */
  awaitsPrefill(model: string): boolean;
}

/** @param tracked All known instances, in any order. */
export function fleetOf(tracked: Iterable<Known>, pairs: Pairs, rules: FleetRules): FleetView {
  const sorted = [...tracked].sort((a, b) => (a.instanceId < b.instanceId ? -1 : 1));
  const lastResorts = lastResortsOf(sorted);
  const standings = new Map<Instance, Standing>();
  const models = new Map<string, { prefill: Known[]; decode: Known[] }>();
  for (const one of sorted) {
    standings.set(one, standingOf(one, lastResorts.has(one)));
    if (!one.registered) continue;
    const { model } = one.info;
    let members = models.get(model);
    if (members === undefined) models.set(model, (members = { prefill: [], decode: [] }));
    members[sideOf(one)].push(one);
  }
  const views = new Map<string, ModelView>();
  for (const [name, { prefill, decode }] of [...models].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const partners = partnersIn(prefill, decode, standings, pairs);
    const seen = (instance: Instance): Seen => ({ instance, standing: standings.get(instance)! });
    // Its KV needs a partner even if the prefill instance itself is draining by now.
    const find = (one: Instance): readonly Instance[] =>
      decode.filter(
        (other) =>
          standings.get(other)!.kind === "serves" &&
          !other.breaker.open &&
          misfitOf(one.info, other.info) === undefined &&
          pairs.outOf(one.instanceId, other.instanceId) === undefined,
      );
    views.set(name, new Model(name, prefill.map(seen), decode.map(seen), { ...partners, find }, rules));
  }
  const listed = (side: Side): Seen[] =>
    sorted.filter((one) => sideOf(one) === side).map((instance) => ({ instance, standing: standings.get(instance)! }));
  let pairsOut = 0;
  for (const _ of pairs.open()) pairsOut += 1;
  return {
    prefill: listed("prefill"),
    decode: listed("decode"),
    models: views,
    overruled: [...standings.values()].some(
      (standing) => standing.kind === "serves" && standing.despite === "unlisted",
    ),
    pairsOut,
    pairFault(prefill, decode) {
      const misfit = misfitOf(prefill.info, decode.info);
      if (misfit !== undefined) return misfit.text;
      for (const one of [prefill, decode]) {
        const standing = standings.get(one);
        if (standing?.kind !== "serves") return `${one.instanceId} is out (${standing?.reason ?? "left"})`;
      }
      const model = views.get(prefill.info.model);
      if (model?.partnersOf(prefill).includes(decode) === true) return undefined;
      return pairs.outOf(prefill.instanceId, decode.instanceId)?.text ?? "no probe has succeeded with it yet";
    },
  };
}

export function sideOf({ info }: Instance): Side {
  return info.role === Role.PREFILL ? "prefill" : "decode";
}

/**
 * The instances without which a side of a model would have none. Neither their registry nor a second of silence takes
 * them out: a Consul agent that restarts fails the checks of all its services, and forgets them if it has no disk, so
 * the instances' own heartbeats weigh more then. An operator's maintenance mode takes an instance out in any case.
 */
export function lastResortsOf(tracked: Iterable<Known>): ReadonlySet<Known> {
  const sound = new Set<string>();
  const candidates: Known[] = [];
  const key = (one: Known): string => `${sideOf(one)} ${one.info.model}`;
  for (const one of tracked) {
    const standing = standingOf(one);
    if (standing.kind === "serves") sound.add(key(one));
    else if (standing.reason === "suspect" || standing.reason === "unlisted") candidates.push(one);
  }
  return new Set(candidates.filter((one) => !sound.has(key(one))));
}

interface Partners {
  readonly prefills: readonly Instance[];
  readonly of: ReadonlyMap<Instance, readonly Instance[]>;
  readonly unpaired: readonly Instance[];
  readonly avoidsPair: boolean;
}

/** Pairs the instances of one model. Takes out instances that serve by their own word but fit into no pair. */
function partnersIn(
  prefill: readonly Known[],
  decode: readonly Known[],
  standings: Map<Instance, Standing>,
  pairs: Pairs,
): Partners {
  const serves = (one: Instance): boolean => standings.get(one)!.kind === "serves";
  const servesUnpaired = (one: Known): boolean => traitsOf(one.info.connector)?.servesUnpaired === true;
  // Proven or not, its engine answers unpaired requests as any plain engine does.
  for (const one of decode) {
    const standing = standings.get(one)!;
    if (standing.kind !== "out" || standing.reason !== "unproven" || !servesUnpaired(one)) continue;
    standings.set(one, { kind: "serves", despite: "unproven", text: `${standing.text} It serves without prefill.` });
  }
  const fitting = new Map<string, readonly Known[]>();
  const fittingOf = (one: Known): readonly Known[] => {
    const build = buildOf(one.info);
    let found = fitting.get(build);
    if (found === undefined) {
      const known = traitsOf(one.info.connector) !== undefined;
      found = known ? decode.filter((other) => misfitOf(one.info, other.info) === undefined) : [];
      fitting.set(build, found);
    }
    return found;
  };
  const usable = new Map<string, readonly Instance[]>();
  const of = new Map<Instance, readonly Instance[]>();
  const matched = new Set<Instance>();
  let avoidsPair = false;
  for (const one of prefill) {
    const fits = fittingOf(one);
    for (const other of fits) matched.add(other);
    if (!serves(one)) continue;
    if (fits.length === 0 && decode.length > 0) {
      standings.set(one, out("unmatched", unmatchedText(one, decode)));
      continue;
    }
    const build = buildOf(one.info);
    let partners = usable.get(build);
    if (partners === undefined) {
      partners = fits.filter((other) => serves(other) && !other.breaker.open);
      usable.set(build, partners);
    }
    if (pairs.any) {
      const blocked = partners.filter((other) => pairs.outOf(one.instanceId, other.instanceId) !== undefined);
      if (blocked.length > 0) {
        const { because, text } = pairs.outOf(one.instanceId, blocked[0]!.instanceId)!;
        avoidsPair ||= blocked.some((other) => pairs.outOf(one.instanceId, other.instanceId)?.because === "failing");
        if (blocked.length === partners.length && because === "unproven") {
          standings.set(one, out("unproven", `With ${blocked[0]!.instanceId}: ${text}`));
          continue;
        }
        partners = partners.filter((other) => !blocked.includes(other));
      }
    }
    if (partners.length > 0) of.set(one, partners);
  }
  if (prefill.length > 0) {
    for (const one of decode) {
      if (!serves(one) || matched.has(one) || servesUnpaired(one)) continue;
      standings.set(one, out("unmatched", unmatchedText(one, prefill)));
    }
  }
  const unpaired = decode.filter((one) => serves(one) && servesUnpaired(one));
  return { prefills: [...of.keys()], of, unpaired, avoidsPair };
}

function unmatchedText(one: Known, others: readonly Known[]): string {
  const other = others[0]!;
  const [prefill, decode] = sideOf(one) === "prefill" ? [one, other] : [other, one];
  const connector = one.info.connector;
  const why =
    traitsOf(connector) !== undefined
      ? (misfitOf(prefill.info, decode.info)?.text ?? "their facts differ")
      : `this router doesn't know the KV connector ${connector}`;
  return `It fits no ${sideOf(other)} instance: ${why}.`;
}

type FoundPartners = Partners & { find(prefill: Instance): readonly Instance[] };

class Model implements ModelView {
  readonly name: string;
  readonly prefill: readonly Seen[];
  readonly decode: readonly Seen[];
  readonly prefills: readonly Instance[];
  readonly unpaired: readonly Instance[];
  readonly avoidsPair: boolean;
  readonly maxModelLen: number;
  readonly mayServeUnpaired: boolean;
  readonly #partners: FoundPartners;
  readonly #serving: readonly Instance[];
  readonly #pairLack: string | undefined;

  constructor(
    name: string,
    prefill: readonly Seen[],
    decode: readonly Seen[],
    partners: FoundPartners,
    rules: FleetRules,
  ) {
    this.name = name;
    this.prefill = prefill;
    this.decode = decode;
    this.prefills = partners.prefills;
    this.unpaired = partners.unpaired;
    this.avoidsPair = partners.avoidsPair;
    this.#partners = partners;
    this.#serving = decode.filter(({ standing }) => standing.kind === "serves").map(({ instance }) => instance);
    const lengths = [...prefill, ...decode]
      .map(({ instance }) => instance.info.maxModelLen)
      .filter((length) => length > 0);
    this.maxModelLen = lengths.length === 0 ? 0 : Math.min(...lengths);
    this.mayServeUnpaired = rules.unpaired && this.unpaired.length > 0 && !rules.awaitsPrefill(name);
    this.#pairLack = this.prefills.length > 0 ? undefined : lackText(this);
  }

  partnersOf(prefill: Instance): readonly Instance[] {
    return this.#partners.of.get(prefill) ?? this.#partners.find(prefill);
  }

  get slots(): number {
    let sum = 0;
    for (const { slots } of this.#serving) sum += slots;
    return sum;
  }

  lack(paired: boolean): string | undefined {
    return !paired && this.mayServeUnpaired ? undefined : this.#pairLack;
  }
}

/** Clients read this text, so it names no instance and no address. */
function lackText({ name, prefill, decode }: ModelView): string {
  const lacks: string[] = [];
  const isUnmatched = ({ standing }: Seen): boolean => standing.kind === "out" && standing.reason === "unmatched";
  if (prefill.length > 0 && decode.length > 0 && [...prefill, ...decode].every(isUnmatched)) {
    const fact = misfitOf(prefill[0]!.instance.info, decode[0]!.instance.info)?.fact ?? "the KV connector";
    return `The model \`${name}\` can't be served: its prefill and decode instances don't fit each other: they differ in ${fact}.`;
  }
  for (const [side, seen] of [
    ["prefill", prefill],
    ["decode", decode],
  ] as const) {
    if (seen.some(({ standing }) => standing.kind === "serves")) continue;
    const reasons = new Map<Reason, number>();
    for (const { standing } of seen)
      if (standing.kind === "out") reasons.set(standing.reason, (reasons.get(standing.reason) ?? 0) + 1);
    const census = [...reasons].map(([reason, count]) => `${count} ${reason}`).join(", ");
    if (seen.length === 0) lacks.push(`no ${side} instance is registered`);
    else if (seen.length === 1) lacks.push(`its only ${side} instance is out (${[...reasons.keys()][0]})`);
    else lacks.push(`all ${seen.length} ${side} instances are out (${census})`);
  }
  if (lacks.length === 0) lacks.push("its prefill and decode instances can't be paired now");
  return `The model \`${name}\` can't be served: ${lacks.join(", and ")}.`;
}
