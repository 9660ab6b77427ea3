// Picks the instances of one attempt from the view of the fleet. The prefill policy picks among the instances that have
// a partner, the decode policy among the partners. The view decides which instances can serve; this file only picks
// from them.
import type { Load } from "#gen/tandem/instance/v1/instance_pb.js";
import { type Clock, systemClock } from "../../common/clock.ts";
import type { Live } from "../../common/config.ts";
import { ServiceError } from "../../common/errors.ts";
import { traitsOf } from "../../kv/index.ts";
import type { Traits } from "../../kv/connector.ts";
import { backInMs } from "../pool/fleet.ts";
import type { Instance, ModelView, Pool, Side } from "../pool/pool.ts";
import type { Picker } from "./policies.ts";

/** The attempt to place. */
export interface Wanted {
  readonly model: string;
  /** Tokens of its prompt, estimated. */
  readonly tokens: number;
  /** Whether only a pair may serve it, without fallbacks. */
  readonly strict: boolean;
}

export interface Place {
  readonly traits: Traits & { readonly unpaired?: boolean };
  /** Undefined if the leg is unpaired. */
  readonly prefill: Instance | undefined;
  /** Undefined if the connector requires that it is picked after prefill. */
  readonly decode: Instance | undefined;
  /** How the placement differs from the plan. */
  readonly fallback?: "last_resort" | "pair_avoided" | "unpaired" | "unpaired_short";
}

/** How further attempts treat an instance. `failed`: used only if no other is left. `wedged`: not used again. */
export type Exclusion = "failed" | "wedged";

/** What one choice learned about instances in earlier attempts. */
export class Exclusions {
  readonly #excluded = new Map<string, { readonly how: Exclusion; readonly kvAddress: string }>();
  readonly #busy = new Map<string, { readonly load: Load | undefined; readonly legs: number }>();

  /** Most choices never meet a failure. */
  get none(): boolean {
    return this.#excluded.size === 0 && this.#busy.size === 0;
  }

  exclude(instance: Instance, how: Exclusion): void {
    if (this.isWedged(instance)) return;
    this.#excluded.set(instance.instanceId, { how, kvAddress: instance.info.kvAddress });
  }

  /**
   * Excludes an instance that had no free slot, until its next report or the end of a leg shows a free slot. Called after
   * the leg's slot was released.
   */
  busy({ instanceId, load, legs }: Instance): void {
    this.#busy.set(instanceId, { load, legs });
  }

  /** Excludes an instance that takes no legs, until its next report. */
  refused({ instanceId, load }: Instance): void {
    this.#busy.set(instanceId, { load, legs: 0 });
  }

  isBusy({ instanceId, load, legs, freeSlots }: Instance): boolean {
    const mark = this.#busy.get(instanceId);
    if (mark === undefined) return false;
    const news = load !== mark.load || legs < mark.legs;
    if (!news || freeSlots === 0) return true;
    this.#busy.delete(instanceId);
    return false;
  }

  hasFailed({ instanceId }: Instance): boolean {
    return this.#excluded.has(instanceId);
  }

  /** With P2P NCCL, where engines wedge, the next engine of the instance has another KV address. */
  isWedged({ instanceId, info }: Instance): boolean {
    const excluded = this.#excluded.get(instanceId);
    return excluded?.how === "wedged" && excluded.kvAddress === info.kvAddress;
  }
}

/** @param rules Prompts of fewer than `unpairedTokens` are served unpaired, if the connector allows it. */
export function createPlacer(
  pool: Pick<Pool, "view">,
  pickers: { readonly prefill: Picker; readonly decode: Picker },
  rules: Live<{ readonly unpairedTokens: number }> = { current: { unpairedTokens: 0 } },
  clock: Pick<Clock, "nowMs"> = systemClock,
) {
  function modelOf(name: string): ModelView {
    const model = pool.view.models.get(name);
    if (model === undefined)
      throw noInstance(`The model \`${name}\` can't be served: no instance of it is registered.`);
    return model;
  }

  /** The error for a model that lacks instances. If the lack is about to end, a wait may help. */
  function lacking(model: ModelView): ServiceError {
    const lack = model.lack(true);
    if (lack === undefined) return partnersGone();
    const end = model.lackEnd(true, clock.nowMs());
    if (end === undefined) return noInstance(lack);
    return new ServiceError("instance_busy", end.text, { retryAfterS: end.inMs / 1_000 });
  }

  /** No instance that serves is left for this request. One that is about to may be waited for. */
  function allTried(model: ModelView, side: Side): ServiceError {
    const nowMs = clock.nowMs();
    const inMs = Math.min(
      ...model[side].map((seen) => (seen.standing.kind === "out" ? backInMs(seen, nowMs) : Infinity)),
    );
    const why = `No ${side} instance is left to try`;
    if (!Number.isFinite(inMs)) return tryAgain("no_instance", `${why}.`);
    return new ServiceError("instance_busy", `${why}; one is loading.`, { retryAfterS: Math.ceil(inMs / 1_000) });
  }

  function pick(model: ModelView, side: Side, instances: readonly Instance[], exclusions: Exclusions): Instance {
    let able = instances;
    if (!exclusions.none) {
      const sound = instances.filter((one) => !exclusions.isWedged(one));
      if (sound.length === 0) throw allTried(model, side);
      able = sound.filter((one) => !exclusions.isBusy(one));
      if (able.length === 0) throw allBusy(side, sound.length);
      const fresh = able.filter((one) => !exclusions.hasFailed(one));
      if (fresh.length > 0) able = fresh;
    }
    return pickers[side].pick(able);
  }

  /** Places a leg without prefill. Its decode instance is picked when the leg opens. */
  function placeUnpaired(
    { unpaired }: ModelView,
    fallback: "unpaired" | "unpaired_short",
    exclusions: Exclusions,
  ): Place | undefined {
    const able = unpaired.filter((one) => !exclusions.isWedged(one));
    if (able.length === 0) return undefined;
    if (able.every((one) => exclusions.isBusy(one))) throw allBusy("decode", able.length);
    return {
      traits: { ...traitsOf(able[0]!.info.connector)!, unpaired: true },
      prefill: undefined,
      decode: undefined,
      fallback,
    };
  }

  /** Prefill instances that this attempt may use, and that have a partner it may use. */
  function usable(model: ModelView, exclusions: Exclusions): readonly Instance[] {
    if (exclusions.none) return model.prefills;
    const sound = model.prefills.filter((one) => !exclusions.isWedged(one));
    const partners = (prefill: Instance): Instance[] =>
      model.partnersOf(prefill).filter((decode) => !exclusions.isWedged(decode));
    const partnered = sound.filter((one) => partners(one).some((decode) => !exclusions.isBusy(decode)));
    if (partnered.length > 0 || sound.length === 0) return partnered;
    // No prefill runs while no decode instance can take its KV.
    const decodes = new Set(sound.flatMap(partners));
    throw decodes.size === 0 ? allTried(model, "decode") : allBusy("decode", decodes.size);
  }

  return {
    /** @throws ServiceError `no_instance`; `instance_busy` if waiting may help */
    place({ model: name, tokens, strict }: Wanted, exclusions: Exclusions): Place {
      const model = modelOf(name);
      if (!strict && tokens < rules.current.unpairedTokens) {
        const place = placeUnpaired(model, "unpaired_short", exclusions);
        if (place !== undefined) return place;
      }
      const prefills = usable(model, exclusions);
      const { lastResorts } = model;
      // Where decode can serve alone, no prefill instance is tried twice, nor one on which legs fail.
      if (prefills.every((one) => lastResorts.has(one) || exclusions.hasFailed(one))) {
        const place = strict || !model.mayServeUnpaired ? undefined : placeUnpaired(model, "unpaired", exclusions);
        if (place !== undefined) return place;
      }
      if (prefills.length === 0) throw model.prefills.length > 0 ? allTried(model, "prefill") : lacking(model);
      const prefill = pick(model, "prefill", prefills, exclusions);
      const traits = traitsOf(prefill.info.connector)!;
      const decode = traits.decodeFirst ? pick(model, "decode", model.partnersOf(prefill), exclusions) : undefined;
      if (lastResorts.has(prefill) || (decode !== undefined && lastResorts.has(decode)))
        return { traits, prefill, decode, fallback: "last_resort" };
      return { traits, prefill, decode, ...(model.avoidsPair ? { fallback: "pair_avoided" } : {}) };
    },
    /**
     * Picks a decode instance for the KV that `prefill` keeps or, given a model, for an unpaired leg. Throws like
     * `place`; and `instance_unavailable` if other pairs serve the model, but none with this prefill instance.
     */
    placeDecode(prefill: Instance | string, exclusions: Exclusions): Instance {
      const model = modelOf(typeof prefill === "string" ? prefill : prefill.info.model);
      const decodes = typeof prefill === "string" ? model.unpaired : model.partnersOf(prefill);
      if (decodes.length === 0) throw lacking(model);
      return pick(model, "decode", decodes, exclusions);
    },
    /** Whether an instance that was placed gets legs although they fail on it. */
    isLastResort: (one: Instance): boolean => pool.view.models.get(one.info.model)?.lastResorts.has(one) === true,
    /** The error for a model that can't be served now; undefined if it can. */
    lack(name: string, strict: boolean): ServiceError | undefined {
      const model = pool.view.models.get(name);
      if (model?.lack(strict) === undefined) return undefined;
      const { message, retryAfterS = 1 } = lacking(model);
      return new ServiceError("no_instance", message, { retryAfterS });
    },
  };
}

export type Placer = ReturnType<typeof createPlacer>;

function allBusy(side: Side, count: number): ServiceError {
  const which = count === 1 ? `The ${side} instance is busy` : `All ${count} ${side} instances are busy`;
  return tryAgain("instance_busy", `${which}.`);
}

function noInstance(lack: string): ServiceError {
  return tryAgain("no_instance", lack);
}

/** Other pairs serve the model, but the last partner of this prefill instance left while it computed the prompt. */
function partnersGone(): ServiceError {
  return new ServiceError("instance_unavailable", "No decode instance can take the KV cache now.", { retryAfterS: 1 });
}

function tryAgain(code: "instance_busy" | "no_instance", why: string): ServiceError {
  return new ServiceError(code, `${why} Try again in a second.`, { retryAfterS: 1 });
}
