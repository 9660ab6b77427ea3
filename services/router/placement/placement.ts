// Picks the instances of one attempt from the view of the fleet: prefill by its policy among those that have a partner,
// decode by its own among the partners. The view says who can serve; here is only whom this attempt gets.
import type { Load } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Live } from "../../common/config.ts";
import { ServiceError } from "../../common/errors.ts";
import { CONNECTORS } from "../../kv/index.ts";
import type { ConnectorName, Traits } from "../../kv/connector.ts";
import type { Instance, ModelView, Pool, Side } from "../pool/pool.ts";
import type { Policy } from "./policies.ts";

/** What is to be placed. */
export interface Wanted {
  readonly model: string;
  /** Of its prompt, estimated. */
  readonly tokens: number;
  /** No fallbacks: on a pair, or not at all. */
  readonly strict: boolean;
}

export interface Place {
  readonly traits: Traits & { readonly unpaired?: boolean };
  /** Undefined where the leg is unpaired. */
  readonly prefill: Instance | undefined;
  /** Undefined where the connector has it picked after prefill. */
  readonly decode: Instance | undefined;
  /** How the placement differs from the plan. */
  readonly fallback?: "pair_avoided" | "unpaired" | "unpaired_short";
}

/** How an instance is treated in further attempts. `failed`: only where no other is left. `wedged`: not again. */
export type Exclusion = "failed" | "wedged";

/** What one choice has learned about instances in its earlier attempts. */
export class Exclusions {
  readonly #excluded = new Map<string, Exclusion>();
  readonly #busy = new Map<string, { readonly load: Load | undefined; readonly legs: number }>();

  /** Most choices never meet a failure. */
  get none(): boolean {
    return this.#excluded.size === 0 && this.#busy.size === 0;
  }

  exclude({ instanceId }: Instance, how: Exclusion): void {
    if (this.#excluded.get(instanceId) !== "wedged") this.#excluded.set(instanceId, how);
  }

  /** It refused for want of a slot: out until something says that one is free. Called after the leg was given back. */
  busy({ instanceId, load, legs }: Instance): void {
    this.#busy.set(instanceId, { load, legs });
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

  isWedged({ instanceId }: Instance): boolean {
    return this.#excluded.get(instanceId) === "wedged";
  }
}

export interface Placer {
  /** @throws ServiceError `no_instance`; `instance_busy` where waiting may help */
  place(wanted: Wanted, exclusions: Exclusions): Place;
  /** A decode instance for KV that `prefill` keeps or, given a model, for a leg without prefill. Throws as `place`. */
  placeDecode(prefill: Instance | string, exclusions: Exclusions): Instance;
}

export interface PlacementRules {
  /** Shorter prompts, in tokens, are served unpaired, where the connector allows it. */
  readonly unpairedTokens: number;
}

export function createPlacer(
  pool: Pick<Pool, "view">,
  policies: { readonly prefill: Policy; readonly decode: Policy },
  rules: Live<PlacementRules> = { current: { unpairedTokens: 0 } },
): Placer {
  function modelOf(name: string): ModelView {
    const model = pool.view.models.get(name);
    if (model === undefined)
      throw noInstance(`The model \`${name}\` can't be served: no instance of it is registered.`);
    return model;
  }

  function pick(policy: Policy, side: Side, instances: readonly Instance[], exclusions: Exclusions): Instance {
    let able = instances;
    if (!exclusions.none) {
      const sound = instances.filter((one) => !exclusions.isWedged(one));
      if (sound.length === 0) throw allTried(side);
      able = sound.filter((one) => !exclusions.isBusy(one));
      if (able.length === 0) throw allBusy(side, sound.length);
      able = preferred(able, (one) => !exclusions.hasFailed(one));
    }
    return policy.pick(preferred(able, ({ freeSlots }) => freeSlots > 0));
  }

  /** For a leg without prefill; its decode instance is picked when it opens. */
  function placeUnpaired(
    { unpaired }: ModelView,
    fallback: "unpaired" | "unpaired_short",
    exclusions: Exclusions,
  ): Place | undefined {
    const able = unpaired.filter((one) => !exclusions.isWedged(one));
    if (able.length === 0) return undefined;
    if (able.every((one) => exclusions.isBusy(one))) throw allBusy("decode", able.length);
    return { traits: { ...traitsOf(able[0]!), unpaired: true }, prefill: undefined, decode: undefined, fallback };
  }

  /** Prefill instances that this attempt may use, and that have a partner it may use. */
  function usable(model: ModelView, exclusions: Exclusions): readonly Instance[] {
    if (exclusions.none) return model.prefills;
    const sound = model.prefills.filter((one) => !exclusions.isWedged(one));
    const partners = (prefill: Instance): Instance[] =>
      model.partnersOf(prefill).filter((decode) => !exclusions.isWedged(decode));
    const partnered = sound.filter((one) => partners(one).some((decode) => !exclusions.isBusy(decode)));
    if (partnered.length > 0 || sound.length === 0) return partnered;
    // No prefill is paid while its KV has nowhere to go.
    const decodes = new Set(sound.flatMap(partners));
    throw decodes.size === 0 ? allTried("decode") : allBusy("decode", decodes.size);
  }

  return {
    place({ model: name, tokens, strict }, exclusions) {
      const model = modelOf(name);
      if (!strict && tokens < rules.current.unpairedTokens) {
        const place = placeUnpaired(model, "unpaired_short", exclusions);
        if (place !== undefined) return place;
      }
      const prefills = usable(model, exclusions);
      if (prefills.length === 0) {
        const place = strict || !model.mayServeUnpaired ? undefined : placeUnpaired(model, "unpaired", exclusions);
        if (place !== undefined) return place;
        throw model.prefills.length > 0 ? allTried("prefill") : noInstance(model.lack(true));
      }
      const prefill = pick(policies.prefill, "prefill", prefills, exclusions);
      const traits = traitsOf(prefill);
      const decode = traits.decodeFirst
        ? pick(policies.decode, "decode", model.partnersOf(prefill), exclusions)
        : undefined;
      return { traits, prefill, decode, ...(model.avoidsPair ? { fallback: "pair_avoided" } : {}) };
    },
    placeDecode(prefill, exclusions) {
      const model = modelOf(typeof prefill === "string" ? prefill : prefill.info.model);
      const decodes = typeof prefill === "string" ? model.unpaired : model.partnersOf(prefill);
      if (decodes.length === 0) throw noInstance(model.lack(true));
      return pick(policies.decode, "decode", decodes, exclusions);
    },
  };
}

/** Of an instance in a view: its connector is known. */
function traitsOf({ info }: Instance): Traits {
  return CONNECTORS[info.connector as ConnectorName].traits;
}

/** Those that pass the test, or all where none does. Copies nothing where all or none do. */
function preferred(instances: readonly Instance[], test: (instance: Instance) => boolean): readonly Instance[] {
  let passed = 0;
  for (const one of instances) if (test(one)) passed += 1;
  return passed === 0 || passed === instances.length ? instances : instances.filter(test);
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

function noInstance(lack = "No decode instance can take the KV cache now."): ServiceError {
  return new ServiceError("no_instance", `${lack} Try again in a second.`, { retryAfterS: 1 });
}
