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
import { keptOf } from "./doubt.ts";
import type { Breaker } from "./breaker.ts";
import type { Instance } from "./instance.ts";
import type { Pairs } from "./pairs.ts";
import { type Facts, out, standingOf, type Reason, type Standing } from "./standing.ts";

export type Side = "prefill" | "decode";
export const SIDES: readonly Side[] = ["prefill", "decode"];

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
  /** Instances that get legs although legs on them, or on all their pairs, fail: a last resort (doubt.ts). */
  readonly lastResorts: ReadonlySet<Instance>;
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
  /**
   * When the model is expected to lack nothing any more; undefined if it lacks nothing now, or if nothing says that this
   * will change.
   */
  lackEnd(paired: boolean, nowMs: number): LackEnd | undefined;
}

/** A lack that is about to end: an engine is being started, or a first probe is under way. */
export interface LackEnd {
  readonly inMs: number;
  /** The lack and the expected time, as a sentence for clients. */
  readonly text: string;
}

export interface FleetView {
  /** In the order of their ids, including instances that left and still run legs. */
  readonly prefill: readonly Seen[];
  readonly decode: readonly Seen[];
  /** In the order of their names. */
  readonly models: ReadonlyMap<string, ModelView>;
  /** Whether most instances are suspect together, so that this router doubts itself. */
  readonly doubtsItself: boolean;
  /** Instances of all models that are a last resort. */
  readonly lastResortCount: number;
  /** Whether an instance gets legs although its registry reports it dead or gone. */
  readonly overruled: boolean;
  /** Pairs that get no legs although both their instances do. */
  readonly pairsOut: number;
  /** Undefined if the two are a pair that takes legs; otherwise a sentence for people. */
  pairFault(prefill: Instance, decode: Instance): string | undefined;
}

/** An instance with everything that its standing depends on. */
export type Known = Instance & Facts & { readonly breaker: Breaker };

/**
 * @param tracked All known instances, in any order.
 * @param unpairedMayServe Whether decode may serve a model unpaired now, if the connector allows it.
 * @param doubtsItself Whether this router doubts itself.
 */
export function fleetOf(
  tracked: Iterable<Known>,
  pairs: Pairs,
  unpairedMayServe: (model: string) => boolean,
  doubtsItself = false,
): FleetView {
  const sorted = [...tracked].sort((a, b) => (a.instanceId < b.instanceId ? -1 : 1));
  const kept = keptOf(sorted, modelSideOf, doubtsItself);
  const standings = new Map<Instance, Standing>();
  const members = new Map<string, Record<Side, Known[]>>();
  for (const one of sorted) {
    standings.set(one, standingOf(one, kept.has(one)));
    if (!one.registered) continue;
    const { model } = one.info;
    let sides = members.get(model);
    if (sides === undefined) members.set(model, (sides = { prefill: [], decode: [] }));
    sides[sideOf(one)].push(one);
  }
  const seen = (instance: Instance): Seen => ({ instance, standing: standings.get(instance)! });
  const models = new Map<string, ModelView>();
  for (const [name, { prefill, decode }] of [...members].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const pairing = pairUp(prefill, decode, standings, pairs);
    models.set(name, modelView(name, prefill.map(seen), decode.map(seen), pairing, unpairedMayServe(name)));
  }
  return {
    prefill: sorted.filter((one) => sideOf(one) === "prefill").map(seen),
    decode: sorted.filter((one) => sideOf(one) === "decode").map(seen),
    models,
    doubtsItself,
    lastResortCount: [...models.values()].reduce((sum, { lastResorts }) => sum + lastResorts.size, 0),
    overruled: [...standings.values()].some(
      (standing) => standing.kind === "serves" && standing.despite === "unlisted",
    ),
    pairsOut: [...pairs.open()].length,
    pairFault(prefill, decode) {
      const misfit = misfitOf(prefill.info, decode.info);
      if (misfit !== undefined) return `The two don't fit: ${misfit.text}.`;
      for (const one of [prefill, decode]) {
        const standing = standings.get(one);
        if (standing?.kind !== "serves") return `${one.instanceId} is out (${standing?.reason ?? "left"}).`;
      }
      const model = models.get(prefill.info.model);
      if (model?.partnersOf(prefill).includes(decode) === true) return undefined;
      return pairs.outOf(prefill.instanceId, decode.instanceId)?.text ?? "No probe has succeeded with it yet.";
    },
  };
}

export function sideOf({ info }: Instance): Side {
  return info.role === Role.PREFILL ? "prefill" : "decode";
}

/** The side of a model that an instance belongs to, as a key. */
export function modelSideOf(one: Instance): string {
  return `${sideOf(one)} ${one.info.model}`;
}

type Pairing = Pick<ModelView, "prefills" | "partnersOf" | "unpaired" | "avoidsPair" | "lastResorts">;

/** Pairs the instances of one model. Takes out instances that serve by their own word but fit into no pair. */
function pairUp(
  prefill: readonly Known[],
  decode: readonly Known[],
  standings: Map<Instance, Standing>,
  pairs: Pairs,
): Pairing {
  const serves = (one: Instance): boolean => standings.get(one)!.kind === "serves";
  const servesUnpaired = (one: Known): boolean => traitsOf(one.info.connector)?.servesUnpaired === true;
  // Proven or not, its engine answers unpaired requests as any plain engine does.
  for (const one of decode) {
    const standing = standings.get(one)!;
    if (standing.kind !== "out" || standing.reason !== "unproven" || !servesUnpaired(one)) continue;
    standings.set(one, { kind: "serves", despite: "unproven", text: `${standing.text} It serves without prefill.` });
  }
  const fitting = perBuild(({ info }) =>
    traitsOf(info.connector) !== undefined ? decode.filter((other) => misfitOf(info, other.info) === undefined) : [],
  );
  // Of those that serve, the unproven ones do so only unpaired.
  const usable = perBuild((one) =>
    fitting(one).filter((other) => serves(other) && other.breaker.because !== "unproven"),
  );
  const outOf = (one: Instance, other: Instance): Breaker | undefined => pairs.outOf(one.instanceId, other.instanceId);
  const partners = new Map<Instance, readonly Instance[]>();
  const matched = new Set<Instance>();
  const lastResorts = new Set<Instance>(
    [...prefill, ...decode].filter((one) => {
      const standing = standings.get(one)!;
      return standing.kind === "serves" && standing.despite === "failing";
    }),
  );
  /** Prefill instances whose pairs all fail. */
  const pairless: Known[] = [];
  let avoidsPair = false;
  for (const one of prefill) {
    const fits = fitting(one);
    for (const other of fits) matched.add(other);
    if (!serves(one)) continue;
    if (fits.length === 0 && decode.length > 0) {
      standings.set(one, out("unmatched", unmatchedText(one, decode)));
      continue;
    }
    const able = usable(one);
    const blocked = pairs.any ? able.filter((other) => outOf(one, other) !== undefined) : [];
    avoidsPair ||= blocked.some((other) => outOf(one, other)!.because === "failing");
    if (blocked.length < able.length) {
      partners.set(one, blocked.length === 0 ? able : able.filter((other) => !blocked.includes(other)));
    } else if (blocked.length > 0) {
      const { because, text } = outOf(one, blocked[0]!)!;
      if (because === "unproven") {
        const soon = blocked.some((other) => outOf(one, other)!.isUntried);
        standings.set(one, out("unproven", `With ${blocked[0]!.instanceId}: ${text}`, soon));
      } else pairless.push(one);
    }
  }
  // The panic threshold of doubt.ts, for pairs.
  if (partners.size < pairless.length) {
    for (const one of pairless) {
      const trusted = usable(one).filter((other) => !outOf(one, other)!.condemned);
      if (trusted.length === 0) continue;
      partners.set(one, trusted);
      lastResorts.add(one);
    }
  }
  if (prefill.length > 0) {
    for (const one of decode) {
      if (!serves(one) || matched.has(one) || servesUnpaired(one)) continue;
      standings.set(one, out("unmatched", unmatchedText(one, prefill)));
    }
  }
  return {
    prefills: prefill.filter((one) => partners.has(one)),
    // The KV of a prefill instance needs a partner even if the instance itself is draining by now.
    partnersOf: (one) => partners.get(one) ?? usable(one).filter((other) => outOf(one, other) === undefined),
    unpaired: decode.filter((one) => serves(one) && servesUnpaired(one)),
    avoidsPair,
    lastResorts,
  };
}

/** Calls `find` once for all instances of one build. */
function perBuild(find: (one: Instance) => readonly Known[]): (one: Instance) => readonly Known[] {
  const found = new Map<string, readonly Known[]>();
  return (one) => {
    const build = buildOf(one.info);
    let known = found.get(build);
    if (known === undefined) found.set(build, (known = find(one)));
    return known;
  };
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

function modelView(
  name: string,
  prefill: readonly Seen[],
  decode: readonly Seen[],
  pairing: Pairing,
  unpairedMayServe: boolean,
): ModelView {
  const serving = decode.filter(({ standing }) => standing.kind === "serves").map(({ instance }) => instance);
  const lengths = [...prefill, ...decode]
    .map(({ instance }) => instance.info.maxModelLen)
    .filter((length) => length > 0);
  const mayServeUnpaired = unpairedMayServe && pairing.unpaired.length > 0;
  const pairLack = pairing.prefills.length > 0 ? undefined : lackText(name, prefill, decode);
  return {
    ...pairing,
    name,
    prefill,
    decode,
    maxModelLen: lengths.length === 0 ? 0 : Math.min(...lengths),
    mayServeUnpaired,
    get slots() {
      let sum = 0;
      for (const { slots } of serving) sum += slots;
      return sum;
    },
    lack: (paired) => (!paired && mayServeUnpaired ? undefined : pairLack),
    lackEnd(paired, nowMs) {
      if (this.lack(paired) === undefined) return undefined;
      const sides = [prefill, decode].filter((seen) => !seen.some(({ standing }) => standing.kind === "serves"));
      const inMs = Math.max(...sides.map((seen) => Math.min(...seen.map((one) => backInMs(one, nowMs)))));
      if (!Number.isFinite(inMs)) return undefined;
      const lacks = lacksOf(prefill, decode).join(", and ");
      const isLoading = sides.some((seen) =>
        seen.every(({ standing }) => standing.kind === "out" && standing.soon !== true),
      );
      if (!isLoading)
        return { inMs, text: `The model \`${name}\` can't be served: ${lacks}. A probe is about to decide.` };
      return { inMs, text: `The model \`${name}\` is loading: ${lacks}, ready in about ${Math.ceil(inMs / 1_000)} s.` };
    },
  };
}

/** A first probe takes about as long. */
const PROBE_MS = 1_000;

/** In what time an instance that is out is expected to serve. Infinity: nothing says so. */
export function backInMs({ instance, standing }: Seen, nowMs: number): number {
  if (standing.kind !== "out") return 0;
  if (standing.soon === true) return PROBE_MS;
  const { reason } = standing;
  // It may drain because its engine is about to be replaced.
  const readyInMs = reason === "starting" || reason === "draining" ? instance.load?.readyInMs : undefined;
  return readyInMs === undefined ? Infinity : Math.max(PROBE_MS, instance.loadAtMs + readyInMs - nowMs);
}

/** Clients read this text, so it names no instance and no address. */
function lackText(name: string, prefill: readonly Seen[], decode: readonly Seen[]): string {
  const isUnmatched = ({ standing }: Seen): boolean => standing.kind === "out" && standing.reason === "unmatched";
  if (prefill.length > 0 && decode.length > 0 && [...prefill, ...decode].every(isUnmatched)) {
    const fact = misfitOf(prefill[0]!.instance.info, decode[0]!.instance.info)?.fact ?? "the KV connector";
    return `The model \`${name}\` can't be served: its prefill and decode instances don't fit each other: they differ in ${fact}.`;
  }
  const lacks = lacksOf(prefill, decode);
  if (lacks.length === 0) lacks.push("its prefill and decode instances can't be paired now");
  return `The model \`${name}\` can't be served: ${lacks.join(", and ")}.`;
}

function lacksOf(prefill: readonly Seen[], decode: readonly Seen[]): string[] {
  const lacks: string[] = [];
  for (const side of SIDES) {
    const seen = side === "prefill" ? prefill : decode;
    if (seen.some(({ standing }) => standing.kind === "serves")) continue;
    const reasons = new Map<Reason, number>();
    for (const { standing } of seen)
      if (standing.kind === "out") reasons.set(standing.reason, (reasons.get(standing.reason) ?? 0) + 1);
    const census = [...reasons].map(([reason, count]) => `${count} ${reason}`).join(", ");
    if (seen.length === 0) lacks.push(`no ${side} instance is registered`);
    else if (seen.length === 1) lacks.push(`its only ${side} instance is out (${[...reasons.keys()][0]})`);
    else lacks.push(`all ${seen.length} ${side} instances are out (${census})`);
  }
  return lacks;
}
